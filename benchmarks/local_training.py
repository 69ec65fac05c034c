"""The node's training loop against a plain PyTorch loop over the same model and batches.

All run in turns, each from the same weights. The plain loop is what a textbook shows: ready-made
tensors, forward, backward, clip, fused AdamW. The node's is what a node runs in a round: batches
drawn from its packed corpus, progress written for people, losses kept. The third is the same in a
trainer's process of its own, as a node has it, between the first step that it tells and the last.

    python benchmarks/local_training.py --size tiny --steps 40
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from running import median, save
from torch.nn.functional import cross_entropy

from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.objectives.objective import objective_named
from tapestry.objectives.reports import StepReport
from tapestry.objectives.sizes import SIZES
from tapestry.objectives.training import InnerOptimizer, choose_threads, train
from tapestry.params.modules import to_model
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, NetworkSettings
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer
from tapestry_node.trainer_process import TrainerProcess


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--steps", type=int, default=40, help="inner steps a run")
    parser.add_argument("--runs", type=int, default=7, help="runs of each, in turns")
    parser.add_argument("--sequences", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run both loops in turns and print their tokens per second."""
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
    size = SIZES[args.size]
    plan = plan_for(args, home, size.sequence_tokens)
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Text {i} of many. " * 60 for i in range(3000)), encoding="utf-8")
    node = NodeHome(folder / "node")
    node.make_folders()
    node.identity.folder.mkdir()
    trainer = Trainer(
        node, NodeTable(), "causal-lm", genesis, [text], sequence_tokens=size.sequence_tokens
    )
    elements = open_vector_file(genesis / MODEL_FILE).layout.elements
    threads = choose_threads(elements)
    process = TrainerProcess(node, on_blocked=lambda _call, _to: None)
    process.open(
        NodeTable(save_every_minutes=0), "causal-lm", genesis, [text],
        sequence_tokens=size.sequence_tokens,
    )  # fmt: skip
    speeds: dict[str, list[float]] = {"plain": [], "node": [], "process": []}
    for _run in range(args.runs + 1):
        speeds["plain"].append(plan.inner.tokens / plain_seconds(trainer, genesis, plan))
        speeds["node"].append(plan.inner.tokens / node_seconds(trainer, genesis, plan, folder))
        speeds["process"].append(process_speed(process, genesis, plan))
    process.stop()
    medians = {name: median(values[1:]) for name, values in speeds.items()}  # first: warm-up
    ratios = {
        name: [n / p for n, p in zip(speeds[name][1:], speeds["plain"][1:], strict=True)]
        for name in ("node", "process")
    }
    print(f"{args.size}, {elements:,} parameters, {threads} threads, {args.runs} runs of each")
    for name, value in medians.items():
        print(f"  {name:<8} {value:>12,.0f} tokens/s")
    for name, values in ratios.items():
        print(f"  {name} / plain: {median(values):.3f} (median of pairs; .95 is asked for)")
    save(
        f"local_training_{args.size}",
        {
            "tokens_per_second": medians,
            "ratio": {name: median(values) for name, values in ratios.items()},
            "ratios": ratios,
        },
    )


def process_speed(process: TrainerProcess, checkpoint: Path, plan: RoundPlan) -> float:
    """Return the tokens per second of a trainer's process, its first step left out."""
    told: list[float] = []
    process.train(
        plan,
        checkpoint,
        previous_state=None,
        on_step=lambda _step: told.append(time.perf_counter()) is None,
    )
    return plan.inner.tokens * (len(told) - 1) / len(told) / (told[-1] - told[0])


def plain_seconds(trainer: Trainer, checkpoint: Path, plan: RoundPlan) -> float:
    """Return the time of the textbook loop."""
    module = trainer.objective.build(checkpoint)
    to_model(open_vector_file(checkpoint / MODEL_FILE).vector, module, trainer.layout)
    inner = plan.inner
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": inner.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=inner.learning_rate, betas=(inner.beta1, inner.beta2), fused=True
    )
    batches = trainer.batches(plan)
    tensors = [torch.from_numpy(batches.batch(step)) for step in range(inner.steps)]
    module.train()
    began = time.perf_counter()
    for batch in tensors:
        logits = module(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), inner.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def node_seconds(trainer: Trainer, checkpoint: Path, plan: RoundPlan, folder: Path) -> float:
    """Return the time of a node's inner steps, as `Trainer.train_round` takes them."""
    trainer.load(checkpoint)
    optimizer = InnerOptimizer(trainer.module, plan.inner)
    progress = folder / "progress.json"

    def on_step(report: StepReport) -> bool:
        progress.write_text(json.dumps({"step": report.step, "loss": report.loss}))
        return True

    began = time.perf_counter()
    train(
        trainer.objective,
        trainer.module,
        optimizer,
        trainer.batches(plan),
        first_batch=0,
        on_step=on_step,
    )
    return time.perf_counter() - began


def settings_for(inner: InnerTable) -> CoordinatorSettings:
    """Return settings that nobody listens by."""
    network = NetworkSettings(address="localhost:1", enrolment_address="localhost:2")
    return CoordinatorSettings(network=network, inner=inner)


def plan_for(args: argparse.Namespace, home: CoordinatorHome, sequence_tokens: int) -> RoundPlan:
    """Return the plan of a first round."""
    genesis = home.load_genesis()
    inner = home.load_settings().inner.settings()
    return RoundPlan(
        genesis=genesis.genesis_digest,
        round=1,
        attempt=1,
        base=genesis.newest_digest,
        layout=genesis.newest.layout,
        policy=home.load_policy().digest,
        cohort=("bench",),
        quorum=1,
        grace_seconds=0.0,
        deadline=1e12,
        objective="causal-lm",
        inner=inner.model_copy(
            update={
                "steps": args.steps,
                "sequences": args.sequences,
                "sequence_tokens": sequence_tokens,
            }
        ),
        codec="int8",
        max_element=10.0,
        seed=0,
    )


if __name__ == "__main__":
    main()
