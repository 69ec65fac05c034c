"""A node's training in two processes against plain two-process loops over the same model.

All run in turns, on the same batches: DistributedDataParallel and FSDP2 as their textbooks show
them (ready-made tensors, forward, backward, clip, fused AdamW, each process its half of the
sequences), and a trainer's process with one follower, as a node has them, with whole copies and
with FSDP2. Each is timed between the end of its first step and of its last, and waits in between.

    python benchmarks/several_processes.py --size tiny --steps 20
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from local_training import plan_for, process_speed, settings_for
from running import median, save
from torch.nn.functional import cross_entropy

from tapestry.checkpoints.statements import InnerSettings
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.objectives.objective import objective_named
from tapestry.objectives.sizes import SIZES
from tapestry.objectives.training import choose_threads
from tapestry.params.modules import to_model
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer_process import TrainerProcess

_PAIRS = {"whole": "ddp", "sharded": "fsdp2"}
"""Which plain loop does the same."""


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1 and sys.argv[1] == "--plain":
        plain(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--steps", type=int, default=20, help="inner steps a run")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, in turns")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--sequence-tokens", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Take turns, and print tokens per second and ratios."""
    home = CoordinatorHome(folder / "coordinator")
    founding = Founding(
        federation="bench",
        objective=objective_named("causal-lm"),
        create={"size": args.size},
        pool=[],
        seed=0,
    )
    found(home.folder, founding, settings_for, now=0.0)
    genesis = home.checkpoint(0)
    plan = plan_for(args, home, args.sequence_tokens)
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Text {i} of many. " * 60 for i in range(3000)), encoding="utf-8")
    processes = []
    speeds_of: dict[str, Callable[[], float]] = {}
    for name in ("ddp", "fsdp2"):
        group = PlainGroup(name, folder, genesis, plan.inner)
        processes.append(group)
        speeds_of[name] = group.speed
    for name, sharding in (("whole", "off"), ("sharded", "on")):
        trainer = ours(folder / name, genesis, text, sharding, args)
        processes.append(trainer)
        speeds_of[name] = lambda trainer=trainer: process_speed(trainer, genesis, plan)
    speeds: dict[str, list[float]] = {name: [] for name in speeds_of}
    for _run in range(args.runs + 1):
        for name, measure in speeds_of.items():
            speeds[name].append(measure())
    for process in processes:
        process.stop()
    tell(speeds, args, open_vector_file(genesis / MODEL_FILE).layout.elements)


def tell(speeds: dict[str, list[float]], args: argparse.Namespace, elements: int) -> None:
    """Print and save; the first run of each was a warm-up."""
    counted = {name: values[1:] for name, values in speeds.items()}
    ratios = {
        f"{mine} / plain {theirs}": [
            a / b for a, b in zip(counted[mine], counted[theirs], strict=True)
        ]
        for mine in _PAIRS
        for theirs in ("ddp", "fsdp2")
    }
    print(f"{args.size}, {elements:,} parameters, two processes, {args.runs} runs of each")
    for name, values in counted.items():
        print(f"  {name:<8} {median(values):>12,.0f} tokens/s")
    for name, values in ratios.items():
        note = (
            "; .95 is asked for" if name in {f"{a} / plain {b}" for a, b in _PAIRS.items()} else ""
        )
        print(f"  {name}: {median(values):.3f} (median of pairs{note})")
    save(
        f"several_processes_{args.size}",
        {
            "tokens_per_second": {name: median(values) for name, values in counted.items()},
            "ratio": {name: median(values) for name, values in ratios.items()},
            "ratios": ratios,
        },
    )


def ours(
    folder: Path, genesis: Path, text: Path, sharding: str, args: argparse.Namespace
) -> TrainerProcess:
    """Return a trainer's process with one follower."""
    node = NodeHome(folder)
    node.make_folders()
    node.identity.folder.mkdir()
    process = TrainerProcess(node, on_blocked=lambda _call, _to: None)
    settings = NodeTable.model_validate(
        {"save_every_minutes": 0, "processes": 2, "sharding": sharding}
    )
    process.open(settings, "causal-lm", genesis, [text], sequence_tokens=args.sequence_tokens)
    return process


class PlainGroup:
    """Two processes with a textbook's loop, that wait until they are asked."""

    def __init__(self, kind: str, folder: Path, genesis: Path, inner: InnerSettings) -> None:
        """Start them."""
        rendezvous = folder / f"rendezvous-{kind}"
        table = json.dumps({"rendezvous": str(rendezvous), "inner": inner.model_dump()})
        self._all = [
            subprocess.Popen(
                [sys.executable, __file__, "--plain", kind, str(rank), str(genesis), table],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def speed(self) -> float:
        """Have them train once; return the first one's tokens per second."""
        for one in self._all:
            if one.stdin is not None:
                one.stdin.write("go\n")
                one.stdin.flush()
        said = [one.stdout.readline() for one in self._all if one.stdout is not None]
        return float(said[0])

    def stop(self) -> None:
        """End them."""
        for one in self._all:
            one.communicate()


def plain(kind: str, rank: int, checkpoint: Path, table: dict[str, Any]) -> None:
    """Train whenever a line comes, and say how fast it was."""
    inner = InnerSettings.model_validate(table["inner"])
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{table['rendezvous']}", rank=rank, world_size=2
    )
    opened = open_vector_file(checkpoint / MODEL_FILE)
    choose_threads(opened.layout.elements, processes=2)
    generator = torch.Generator().manual_seed(0)
    shape = (inner.steps, inner.sequences, inner.sequence_tokens + 1)
    batches = torch.randint(0, 256, shape, generator=generator)
    half = inner.sequences // 2
    own = batches[:, rank * half : (rank + 1) * half]
    for _line in sys.stdin:
        module: Any = objective_named("causal-lm").build(checkpoint)
        to_model(opened.vector, module, opened.layout)
        print(plain_speed(prepared(module, kind), own, inner), flush=True)
    dist.destroy_process_group()


def prepared(module: Any, kind: str) -> Any:  # noqa: ANN401
    """Return the model as the textbook of its kind prepares it."""
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(module)
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh("cpu", (2,))
    for layer in module.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def plain_speed(module: Any, batches: torch.Tensor, inner: InnerSettings) -> float:  # noqa: ANN401
    """Return the tokens per second of a textbook's loop, its first step left out."""
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=inner.learning_rate,
        betas=(inner.beta1, inner.beta2),
        weight_decay=inner.weight_decay,
        fused=True,
    )
    module.train()
    began = 0.0
    for number, batch in enumerate(batches):
        logits = module(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), inner.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number == 0:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    return inner.tokens * (len(batches) - 1) / len(batches) / seconds


if __name__ == "__main__":
    main()
