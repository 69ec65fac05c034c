"""What the consensus is compared with; `python -m tapestry_demo.comparison JOB.json ...` does jobs.

Each job trains or loads a model and measures it on the held-out text of *every* institution.
That needs all texts in one place, which is what a federation is there to avoid: only the
demonstration, which owns them all, can do it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tapestry.checkpoints.statements import InnerSettings
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.objectives.objective import Batches, Objective, objective_named
from tapestry.objectives.training import InnerOptimizer, StepReport, choose_threads, train
from tapestry.params.modules import to_model
from tapestry.storage.atomic import write_atomic

OBJECTIVE = "causal-lm"
_POOL_HELD_OUT = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One model to make and measure."""

    name: str
    start: str
    """Folder of the checkpoint or model that it starts from."""
    train_on: tuple[str, ...]
    """Member ids; empty: measure only. Several: each batch holds one part of each."""
    steps: int
    texts: dict[str, str]
    """Text by member id."""
    caches: dict[str, str]
    """Folder of the packed corpus by member id: the node's own, so the split is the same."""
    pool: str | None
    """The open pool; used by the central model, as by the nodes."""
    shared_fraction: float
    inner: dict[str, Any]
    held_out_bytes: int
    result: str
    """File for the outcome."""
    progress: str

    @property
    def batches(self) -> int:
        """Batches of one institution's size that it trains on: what it costs."""
        return self.steps * len(self.train_on)


class Central:
    """The batches of all institutions side by side: the same text in the same order."""

    def __init__(self, parts: Sequence[Batches]) -> None:
        """Join `parts`."""
        self._parts = parts

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return batch `step` of every part, one below the other."""
        return np.concatenate([part.batch(step) for part in self._parts])


def write_job(path: Path, job: Job) -> None:
    """Write a job for a process of its own."""
    write_atomic(path, json.dumps(asdict(job), indent=1))


def run_job(job: Job) -> dict[str, float]:
    """Return bits per byte on each institution's held-out text, by member id."""
    objective = objective_named(OBJECTIVE)
    start = Path(job.start)
    inner = InnerSettings(**{**job.inner, "steps": max(1, job.steps)})
    corpora = {m: _corpus(objective, job, text, job.caches[m]) for m, text in job.texts.items()}
    opened = open_vector_file(start / MODEL_FILE)
    choose_threads(opened.layout.elements, wanted=1)
    module = objective.build(start)
    to_model(opened.vector, module, opened.layout)
    if job.train_on:
        parts = [_batches(objective, job, corpora[m], inner) for m in job.train_on]
        settings = inner.model_copy(update={"sequences": inner.sequences * len(parts)})
        optimizer = InnerOptimizer(module, settings)
        progress = Path(job.progress)

        def on_step(report: StepReport) -> bool:
            progress.write_text(str(report.step), encoding="utf-8")
            return True

        train(objective, module, optimizer, Central(parts), first_batch=0, on_step=on_step)
    return {m: objective.evaluate(module, corpora[m]).bits_per_byte for m in job.texts}


def _corpus(objective: Objective, job: Job, text: str, cache: str) -> Any:  # noqa: ANN401
    return objective.prepare(
        [Path(text)],
        Path(job.start),
        cache=Path(cache),
        sequence_tokens=job.inner["sequence_tokens"],
        held_out_fraction=0.05,
        held_out_bytes=job.held_out_bytes,
    )


def _batches(objective: Objective, job: Job, corpus: Any, inner: InnerSettings) -> Batches:  # noqa: ANN401
    is_central = len(job.train_on) > 1
    shared = None
    if is_central and job.pool is not None:
        shared = objective.prepare(
            [Path(job.pool)],
            Path(job.start),
            cache=Path(job.caches[job.train_on[0]]),
            sequence_tokens=inner.sequence_tokens,
            held_out_fraction=_POOL_HELD_OUT,
            held_out_bytes=job.held_out_bytes,
        )
    return objective.batches(
        corpus,
        shared,
        sequences=inner.sequences,
        sequence_tokens=inner.sequence_tokens,
        shared_fraction=job.shared_fraction if shared is not None else 0.0,
        seed=0,
    )


def main(paths: Sequence[str]) -> None:
    """Do the jobs in the files at `paths`, one after the other: torch is imported once."""
    for path in paths:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        job = Job(**{**table, "train_on": tuple(table["train_on"])})
        write_atomic(Path(job.result), json.dumps(run_job(job)))


if __name__ == "__main__":
    main(sys.argv[1:])
