"""How long the measures of a localized model take: preference pairs, bits per byte, survey.

On the untrained genesis of a federation, since weights do not change the time; one thread. Wall
seconds are what a user waits, CPU seconds what an idle machine would need.

    python benchmarks/localize_scoring.py --size tiny --pairs 50
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from local_training import settings_for
from running import median, save

from tapestry.objectives.objective import objective_named
from tapestry.objectives.sizes import SIZES
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_finetune.base import open_base
from tapestry_finetune.charter.cases import HeldOutPair
from tapestry_finetune.charter.judge import score_charter
from tapestry_finetune.evaluation.bits import bits_of
from tapestry_finetune.evaluation.series import paired_interval, sliced
from tapestry_finetune.evaluation.suites import Suites
from tapestry_finetune.evaluation.survey import Survey, load_asked, stand_by_survey
from tapestry_finetune.voices import Voice

_WORDS = (
    "the",
    "weaver",
    "lays",
    "thread",
    "over",
    "until",
    "cloth",
    "is",
    "whole",
    "and",
    "day",
    "done",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--words", type=int, default=40, help="of an answer")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voice = genesis(Path(folder), args.size)
    torch.set_num_threads(1)
    pairs = [pair(number, args.words) for number in range(args.pairs)]
    texts = [said(number, 400) for number in range(20)]
    survey = load_asked(Suites(survey=True).survey, Survey, "survey")
    right = np.random.default_rng(0).integers(0, 2, (2, 10_000))
    ids = [str(number) for number in range(10_000)]
    before, after = (sliced("exact", "all", ids, one)[0] for one in right)
    seconds = {
        "pairs": timed(args.runs, lambda: score_charter(voice, pairs)),
        "text": timed(args.runs, lambda: bits_of(voice, texts)),
        "survey": timed(
            args.runs,
            lambda: stand_by_survey(voice, survey, on_progress=lambda _what, _done, _of: None),
        ),
        "bootstrap of 10,000 items": timed(
            args.runs, lambda: paired_interval(before, after, resamples=2000, seed=0)
        ),
    }
    tokens = sum(len(voice.tokenizer.encode(text)) for text in texts)
    for name, taken in seconds.items():
        print(f"{name:<28} {taken['wall']:8.2f} s wall {taken['cpu']:8.2f} s CPU")
    print(f"{'tokens of text':<28} {tokens / seconds['text']['cpu']:8,.0f} a CPU second")
    results = {"size": args.size, "pairs": args.pairs, "seconds": seconds, "text_tokens": tokens}
    save(f"localize_scoring_{args.size}", results)


def genesis(folder: Path, size: str) -> Voice:
    """Return a federation's first model."""
    founding = Founding(
        federation="bench",
        objective=objective_named("causal-lm"),
        create={"size": size},
        pool=[],
        seed=0,
    )
    home = CoordinatorHome(folder / "coordinator")
    found(home.folder, founding, settings_for, now=0.0)
    base = open_base(home.checkpoint(0))
    return Voice(module=base.load("cpu"), tokenizer=base.tokenizer())


def said(seed: int, words: int) -> str:
    """Return words in some order."""
    return " ".join(np.random.default_rng(seed).choice(_WORDS, words))


def pair(number: int, words: int) -> HeldOutPair:
    """Return a question with two answers."""
    asked = ({"role": "user", "content": said(3 * number, 12)},)
    good, bad = said(3 * number + 1, words), said(3 * number + 2, words)
    return HeldOutPair(asked, good, bad, ("one",), number)


def timed(runs: int, work: Callable[[], object]) -> dict[str, float]:
    """Return the medians of the seconds that some work takes."""
    wall, cpu = [], []
    for _run in range(runs):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"wall": median(wall), "cpu": median(cpu)}


if __name__ == "__main__":
    main()
