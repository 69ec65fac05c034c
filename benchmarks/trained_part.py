"""What training a part of a model takes at a node, beside training all of it.

Each in a process of its own, from the same genesis apart from the part: a trainer takes some inner
steps, and the peak of its memory beyond what it had before the model was built is read (Linux).

    python benchmarks/trained_part.py --size small --trainable 'model.layers.7.*'
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_training import plan_for, settings_for
from running import save

from tapestry.objectives.objective import objective_named
from tapestry.objectives.reports import StepReport
from tapestry.objectives.sizes import SIZES
from tapestry.params.subset import ALL, parse_trainable
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--trainable", default="model.layers.7.*,model.norm.weight")
    parser.add_argument("--steps", type=int, default=6, help="inner steps")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--sequence-tokens", type=int, default=64)
    parser.add_argument("--one", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(train(args.one, args)))
        return
    figures = {}
    for trainable in (ALL, args.trainable):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), trainable, args)
            command = [sys.executable, *sys.argv, "--one", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[trainable] = json.loads(done.stdout.splitlines()[-1])
    for trainable, one in figures.items():
        print(
            f"  {trainable:<36} {one['trained']:>12,} of {one['elements']:,} parameters: "
            f"{one['bytes'] / 1e6:,.0f} MB, {one['tokens_per_second']:,.0f} tokens/s"
        )
    whole, part = figures[ALL], figures[args.trainable]
    ratios = {
        "memory": part["bytes"] / whole["bytes"],
        "speed": part["tokens_per_second"] / whole["tokens_per_second"],
    }
    print(f"  part / all: memory {ratios['memory']:.2f}, speed {ratios['speed']:.2f}")
    save(f"trained_part_{args.size}", {"figures": figures, "ratios": ratios})


def make(folder: Path, trainable: str, args: argparse.Namespace) -> None:
    """Found a federation, and write a text."""
    founding = Founding(
        federation="bench",
        objective=objective_named("causal-lm"),
        create={"size": args.size},
        pool=[],
        seed=0,
        trainable=parse_trainable(trainable),
    )
    found(folder / "coordinator", founding, settings_for, now=0.0)
    text = "\n\n".join(f"Text {i} of many. " * 60 for i in range(1000))
    (folder / "text.txt").write_text(text, encoding="utf-8")


def train(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Take the steps; return sizes, memory and speed, the first step left out."""
    home, node = CoordinatorHome(folder / "coordinator"), NodeHome(folder / "node")
    node.make_folders()
    tokens = args.sequence_tokens
    plan = plan_for(args, home, tokens)
    genesis = home.checkpoint(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    before = memory_bytes("VmRSS")
    trainer = Trainer(
        node, NodeTable(), "causal-lm", genesis, [folder / "text.txt"], sequence_tokens=tokens
    )
    told: list[float] = []

    def on_step(_report: StepReport) -> bool:
        told.append(time.perf_counter())
        return True

    trainer.train_round(plan, genesis, previous_state=None, on_step=on_step)
    return {
        "elements": trainer.model_elements,
        "trained": trainer.layout.elements,
        "bytes": memory_bytes("VmHWM") - before,
        "tokens_per_second": args.sequences * tokens * (len(told) - 1) / (told[-1] - told[0]),
    }


def memory_bytes(field: str) -> int:
    """Return a field of what Linux knows of this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
