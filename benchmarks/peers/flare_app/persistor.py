"""The server's model in FLARE: random arrays, written each round, and the time of that."""

import time
from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import (
    ModelLearnable,
    ModelLearnableKey,
    make_model_learnable,
)
from nvflare.app_common.abstract.model_persistor import ModelPersistor

_ARRAY_ELEMENTS = 2**22
_STEP = np.float32(1e-3)


class ArraysPersistor(ModelPersistor):
    """What FLARE's own NPModelPersistor does with one array, for many."""

    def __init__(self, parameters: int, stamps: str) -> None:
        """Make so many parameters; append the time at which each round ended to `stamps`."""
        super().__init__()
        self.parameters = parameters
        self.stamps = stamps
        self.expected = np.float32(0.0)

    def load_model(self, _fl_ctx: FLContext) -> ModelLearnable:
        """Make the first model."""
        rng = np.random.default_rng(0)
        arrays = {}
        for start in range(0, self.parameters, _ARRAY_ELEMENTS):
            size = min(_ARRAY_ELEMENTS, self.parameters - start)
            arrays[f"a{start}"] = rng.standard_normal(size, np.float32)
        self.expected = arrays["a0"][0]
        return make_model_learnable(weights=arrays, meta_props={})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the aggregated model of a round."""
        arrays = model[ModelLearnableKey.WEIGHTS]
        self.expected += _STEP
        if not np.isclose(arrays["a0"][0], self.expected, atol=1e-5):
            raise RuntimeError(f"the round gave {arrays['a0'][0]}, not what the clients sent")
        folder = Path(fl_ctx.get_workspace().get_result_root(fl_ctx.get_job_id())) / "models"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "server.npz", **arrays)
        with Path(self.stamps).open("a", encoding="ascii") as file:
            file.write(f"{time.time()}\n")  # noqa: TID251 - a benchmark's clock
