"""Continued training of a verified consensus checkpoint on a community's own text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from tapestry.checkpoints.localized import Parentage, write_localized
from tapestry.checkpoints.statements import InnerSettings
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError
from tapestry.objectives.objective import OnPreparing, objective_named
from tapestry.objectives.reports import StepReport
from tapestry.objectives.training import (
    InnerOptimizer,
    choose_device,
    choose_threads,
    train,
)
from tapestry.params.modules import fragment_of, load_extras, to_model

_GENESIS_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageRun:
    """What to train, on what, how long."""

    checkpoint: Path
    data: Sequence[Path]
    out: Path
    steps: int
    learning_rate: float | None
    """None takes half of what the federation's inner steps used."""
    sequences: int | None
    """None takes what the federation's inner steps used."""
    device: str
    seed: int
    cache: Path


def train_language(
    run: LanguageRun,
    *,
    federation: str | None = None,
    on_step: Callable[[StepReport], bool] | None = None,
    on_packing: OnPreparing | None = None,
) -> Parentage:
    """Verify the checkpoint, train it on, and write the localized model.

    Raises:
        UntrustedError: The checkpoint does not verify; nothing is loaded.
        ConfigError: The data or a path cannot be used.
    """
    if run.out.exists():
        raise ConfigError(f"{run.out}: exists already; name a new folder")
    verified = verify_checkpoint(run.checkpoint, federation=federation)
    objective = objective_named(verified.lineage.origin.objective)
    inner = _inner(run, verified.manifest.made.inner if verified.manifest.made else None)
    corpus: Any = objective.prepare(
        list(run.data),
        run.checkpoint,
        cache=run.cache,
        sequence_tokens=inner.sequence_tokens,
        held_out_fraction=0.05,
        held_out_bytes=262_144,
        on_progress=on_packing,
    )
    opened = open_vector_file(run.checkpoint / MODEL_FILE)
    choose_threads(opened.layout.elements)
    module = objective.build(run.checkpoint).to(choose_device(run.device))
    to_model(opened.vector, module, opened.layout)
    load_extras(module, opened.extras)
    before = objective.evaluate(module, corpus)
    batches = objective.batches(
        corpus,
        None,
        sequences=inner.sequences,
        sequence_tokens=inner.sequence_tokens,
        shared_fraction=0.0,
        seed=run.seed,
    )
    torch.manual_seed(run.seed)
    optimizer = InnerOptimizer(module, inner)
    losses = train(objective, module, optimizer, batches, first_batch=0, on_step=on_step)
    after = objective.evaluate(module, corpus)
    parentage = Parentage(
        federation=verified.genesis_digest,
        manifest=verified.manifest_digest,
        round=verified.manifest.round,
        steps=len(losses),
        tokens=len(losses) * inner.tokens // inner.steps,
        data=[path.name for path in run.data],
        held_out_bits_per_byte={"before": before.bits_per_byte, "after": after.bits_per_byte},
    )
    write_localized(
        run.out,
        base=run.checkpoint,
        manifest=verified.manifest,
        layout=opened.layout,
        extras=opened.extras,
        read_fragment=lambda index: fragment_of(module, opened.layout, index),
        parentage=parentage,
    )
    return parentage


def _inner(run: LanguageRun, planned: InnerSettings | None) -> InnerSettings:
    """Return the training settings: the federation's, with what the user changed."""
    settings: dict[str, Any] = {
        "sequences": planned.sequences if planned else 8,
        "accumulation": planned.accumulation if planned else 1,
        "sequence_tokens": planned.sequence_tokens if planned else _GENESIS_TOKENS,
        "learning_rate": planned.learning_rate / 2 if planned else 1e-3,
    }
    chosen = {"sequences": run.sequences, "learning_rate": run.learning_rate}
    settings |= {key: value for key, value in chosen.items() if value is not None}
    try:
        return InnerSettings(steps=run.steps, warmup_steps=min(20, run.steps // 5), **settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} = {first['input']}: {first['msg']}") from error
