"""A Flower app whose clients return what they received plus a constant.

It runs in the peer's own environment: `flwr run` packs this folder.
"""

import time
import traceback
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

_ARRAY_ELEMENTS = 2**22
_STEP = np.float32(1e-3)

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds; leave the reason in a file if they fail, for nobody sees this log."""
    stamps = Path(str(context.run_config["stamps"]))
    try:
        run_rounds(grid, context, stamps)
    except BaseException:
        stamps.with_name("failure").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def run_rounds(grid: Grid, context: Context, stamps: Path) -> None:
    """Run FedAvg; append the time at which each round ended to the file `stamps`."""
    nodes, parameters, rounds = (
        int(context.run_config[key]) for key in ("nodes", "parameters", "rounds")
    )
    rng = np.random.default_rng(0)
    model = []
    for start in range(0, parameters, _ARRAY_ELEMENTS):
        size = min(_ARRAY_ELEMENTS, parameters - start)
        model.append(rng.standard_normal(size, np.float32))
    first = model[0][0]

    def end_round(number: int, arrays: ArrayRecord) -> None:
        echoed = next(iter(arrays.values())).numpy()[0]
        if not np.isclose(echoed, first + number * _STEP, atol=1e-5):
            raise RuntimeError(f"round {number} gave {echoed}, not what the clients sent")
        if number > 0:
            with stamps.open("a", encoding="ascii") as file:
                file.write(f"{time.time()}\n")  # noqa: TID251 - a benchmark's clock

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    initial = ArrayRecord(model)
    del model
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds, evaluate_fn=end_round)


@client.train()
def echo(message: Message, _context: Context) -> Message:
    """Return the arrays, each moved by the same constant."""
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "arrays": ArrayRecord([array + _STEP for array in arrays]),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content=content, reply_to=message)
