"""Submit the job: FedAvg over numpy arrays. Runs in the peer's own environment.

python submit.py ADMIN_KIT PARAMETERS NODES ROUNDS STAMPS
"""

import sys
from pathlib import Path

from nvflare.job_config.script_runner import FrameworkType
from nvflare.recipe.fedavg import FedAvgRecipe
from nvflare.recipe.prod_env import ProdEnv
from persistor import ArraysPersistor

if __name__ == "__main__":
    kit, parameters, nodes, rounds, stamps = sys.argv[1:]
    recipe = FedAvgRecipe(
        name="echo",
        min_clients=int(nodes),
        num_rounds=int(rounds),
        train_script=str(Path(__file__).parent / "client.py"),
        framework=FrameworkType.NUMPY,
        model_persistor=ArraysPersistor(int(parameters), stamps),
    )
    recipe.execute(ProdEnv(startup_kit_location=kit, username="admin@bench.org"))
