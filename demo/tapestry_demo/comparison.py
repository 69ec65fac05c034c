"""What the consensus is compared with: jobs that train or measure one model each.

Each job trains or loads a model and measures it on the held-out text of *every* institution.
That needs all texts in one place, which is what a federation is there to avoid: only the
demonstration, which owns them all, can do it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tapestry.checkpoints.statements import InnerSettings
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.objectives.objective import Batches, Objective, objective_named
from tapestry.objectives.reports import StepReport
from tapestry.objectives.training import InnerOptimizer, choose_threads, train
from tapestry.params.modules import to_model
from tapestry.storage.atomic import write_atomic
from tapestry_demo.jobs import Job

OBJECTIVE = "causal-lm"
_POOL_HELD_OUT = 0.01


class Central:
    """The batches of all institutions side by side: the same text in the same order."""

    def __init__(self, parts: Sequence[Batches]) -> None:
        """Join `parts`."""
        self._parts = parts

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return batch `step` of every part, one below the other."""
        return np.concatenate([part.batch(step) for part in self._parts])


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
    """Do the jobs in the files at `paths`, one after the other."""
    for path in paths:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        job = Job(**{**table, "train_on": tuple(table["train_on"])})
        write_atomic(Path(job.result), json.dumps(run_job(job)))
