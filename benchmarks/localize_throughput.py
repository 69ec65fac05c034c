"""How fast a stage is trained against trl's own trainer with the same settings, on one core.

Both train the same low-rank matrices on the same pieces, in turns, each from the same weights:
ours as `tapestry finetune run` does it, with metrics written and checkpoints that can be gone on
from; trl's `SFTTrainer` as its documentation shows it. Counted is from the end of the first step
to the end of the last; the process's own CPU time beside it says what a busy machine took. The
limit beside them is what the same core does if a step is nothing but its matrix products.

    python benchmarks/localize_throughput.py                 # SmolLM2-135M, from the package index
    python benchmarks/localize_throughput.py --tiny          # a model made on the spot, seconds
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import torch
from peft import LoraConfig
from running import median, save
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tapestry_finetune.adapting import adapt, quiet
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.examples import Examples, text_examples
from tapestry_finetune.keeping import Watch
from tapestry_finetune.training import StageSettings, train_stage

_DOCS = Path(__file__).parents[1] / "docs"
_ASKED_RATIO, _ASKED_SPEED = 0.95, 85.0


class Steps:
    """Notes when each step ended."""

    def __init__(self) -> None:
        """Begin with none."""
        self.ended: list[tuple[float, float]] = []

    def note(self, *_: object) -> None:
        """Note the end of a step: wall and CPU seconds."""
        self.ended.append((time.perf_counter(), time.process_time()))

    def speeds(self, tokens_a_step: int) -> dict[str, float]:
        """Return tokens a second after the first step, and a CPU second."""
        (wall, cpu), (last_wall, last_cpu) = self.ended[0], self.ended[-1]
        tokens = tokens_a_step * (len(self.ended) - 1)
        return {"wall": tokens / (last_wall - wall), "cpu": tokens / (last_cpu - cpu)}


class _Telling(TrainerCallback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_step_end(self, *_: Any, **named: Any) -> None:  # noqa: ANN401, ARG002
        self.steps.note()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder in transformers' format")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=6, help="of a run; the first is not counted")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--bfloat16", action="store_true", help="products of both in bfloat16")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: says little, soon")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run both in turns and print their tokens a second."""
    base = open_base(args.model or _model(folder, tiny=args.tiny), unverified=True)
    examples = _examples(base, args)
    ways: dict[str, Callable[..., Steps]] = {"ours": _ours, "trl": _trl}
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for run in range(args.runs):
        for name in list(ways) if run % 2 == 0 else list(reversed(ways)):
            torch.set_num_threads(1)
            steps = ways[name](base, examples, args, folder / f"{name}-{run}")
            found = steps.speeds(args.batch * args.sequence)
            speeds[name].append(found)
            print(f"{name:<6}{found['wall']:8.1f} tokens/s {found['cpu']:8.1f} a CPU second")
    medians = {
        name: {clock: median([one[clock] for one in runs]) for clock in ("wall", "cpu")}
        for name, runs in speeds.items()
    }
    pairs = list(zip(speeds["ours"], speeds["trl"], strict=True))
    ratios = {
        clock: median([one[clock] / other[clock] for one, other in pairs])
        for clock in ("wall", "cpu")
    }
    print(
        f"ours {medians['ours']['wall']:.1f} tokens/s (a CPU second {medians['ours']['cpu']:.1f}; "
        f"{_ASKED_SPEED:.0f} asked for of the 135M model); of trl's, median of pairs: "
        f"{ratios['wall']:.3f} by the clock, {ratios['cpu']:.3f} by CPU time "
        f"({_ASKED_RATIO} asked for); load {os.getloadavg()[0]:.1f}"
    )
    most = _most(base, args)
    print(
        f"the matrix products of a step alone: {most:.1f} tokens a CPU second; ours reaches "
        f"{medians['ours']['cpu'] / most:.2f} of it, trl {medians['trl']['cpu'] / most:.2f}"
    )
    results = {
        "model": base.folder.name,
        "sequence_tokens": args.sequence,
        "sequences": args.batch,
        "steps": args.steps,
        "rank": args.rank,
        "bfloat16": args.bfloat16,
        "medians": medians,
        "ratios": ratios,
        "products_alone": most,
        "speeds": speeds,
        "load": os.getloadavg()[0],
    }
    name = "localize_throughput" + "_tiny" * args.tiny + "_bfloat16" * args.bfloat16
    save(name, results)


def _most(base: Base, args: argparse.Namespace) -> float:
    """Return tokens a CPU second if a step were nothing but the matrix products it cannot avoid.

    Forwards every frozen weight matrix once, backwards once more for the gradient of its input;
    each product alone, warm, with one thread. Attention, norms, low-rank matrices, loss and
    optimizer come on top of it.
    """
    tokens = args.batch * args.sequence
    shapes = Counter(
        tuple(one.weight.shape)
        for one in base.load("cpu").modules()
        if isinstance(one, torch.nn.Linear)
    )
    torch.set_num_threads(1)
    seconds = 0.0
    with torch.inference_mode():
        for (wide, deep), count in shapes.items():
            x, weight = torch.randn(tokens, deep), torch.randn(wide, deep)
            taken = []
            for _ in range(5):
                began = time.process_time()
                y = x @ weight.T
                _ = y @ weight
                taken.append(time.process_time() - began)
            seconds += count * min(taken)
    return tokens / seconds


def _examples(base: Base, args: argparse.Namespace) -> Examples:
    """Return as many whole sequences as a run takes, of this project's documents."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(_DOCS.rglob("*.md")))
    found = text_examples(base.tokenizer(), [text], sequence_tokens=args.sequence)
    needed = args.steps * args.batch
    pieces = [one for one in found.columns["input_ids"] if len(one) == args.sequence][:needed]
    if len(pieces) < needed:
        raise SystemExit(f"the documents give {len(pieces)} sequences: lower --steps or --sequence")
    return Examples(
        kind="tokens",
        columns={"input_ids": pieces, "labels": pieces},
        counted=found.counted,
    )


def _ours(base: Base, examples: Examples, args: argparse.Namespace, folder: Path) -> Steps:
    adapted = adapt(base.load("cpu"), "lora", rank=args.rank, seed=0)
    torch.set_num_threads(1)  # which loading has set to what suits the model
    settings = StageSettings(
        learning_rate=2e-4,
        epochs=1.0,
        steps=args.steps,
        batch=args.batch,
        micro_batch=args.batch,
        sequence_tokens=args.sequence,
        seed=0,
        device="cpu",
        in_bfloat16=args.bfloat16,
    )
    steps = Steps()
    watch = Watch(on_progress=steps.note)
    train_stage(adapted, base.tokenizer(), examples, settings, folder=folder, watch=watch)
    return steps


def _trl(base: Base, examples: Examples, args: argparse.Namespace, folder: Path) -> Steps:
    module = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, local_files_only=True
    )
    steps = Steps()
    with quiet():
        trainer = SFTTrainer(
            model=module,
            args=SFTConfig(
                output_dir=str(folder),
                learning_rate=2e-4,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                gradient_checkpointing=False,
                bf16=args.bfloat16,
                use_cpu=True,
                max_length=args.sequence,
                packing=True,
                logging_steps=1,
                save_strategy="no",
                disable_tqdm=True,
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=examples.dataset(),
            processing_class=base.tokenizer(),
            peft_config=LoraConfig(
                r=args.rank,
                lora_alpha=2 * args.rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[_Telling(steps)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return steps


def _model(folder: Path, *, tiny: bool) -> Path:
    if not tiny:
        from tests.pretrained import smollm2  # noqa: PLC0415 - fetches it

        return smollm2()
    from tests.finetune.consensus import found_consensus  # noqa: PLC0415

    return found_consensus(folder / "consensus", steps=5).home.checkpoint(0)


if __name__ == "__main__":
    main()
