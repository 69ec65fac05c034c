"""A dry run: what a recipe would do, in numbers, before anybody waits for it."""

import resource
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from tapestry_finetune.adapting import adapt
from tapestry_finetune.choosing import (
    largest_micro_batch,
    needed_bytes,
    steps_of,
)
from tapestry_finetune.examples import Examples
from tapestry_finetune.keeping import Watch
from tapestry_finetune.run import Prepared
from tapestry_finetune.training import StageSettings, train_stage

_MEASURED_STEPS = 3
_SHOWN_TOKENS = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """One stage as it would be."""

    stage: str
    rows: int
    tokens: int
    learnt: int
    text_bytes: int
    text_tokens: int
    replayed: int
    held_out: int
    """Of the community's own rows, those that are measured on."""
    cut: int
    dropped: int
    warning: str
    steps: int
    learning_rate: float
    seconds: float
    """Of the whole stage, from steps that were measured; 0: not measured."""
    shown: list[tuple[str, bool]] = field(default_factory=list)
    """The beginning of one example: pieces, and whether each is learnt."""

    @property
    def bytes_per_token(self) -> float:
        """Of what is learnt from."""
        return self.text_bytes / max(1, self.text_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A whole recipe as it would be."""

    stages: list[StagePlan]
    method: str
    chosen: str
    needed_bytes: int
    measured_bytes: int
    """Peak of this process while it measured; 0: not measured."""
    memory_bytes: int
    largest_micro_batch: int

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON table."""
        return asdict(self)


def plan(prepared: Prepared, *, measure: bool = True) -> Plan:
    """Return what a run would do; with `measure` three steps of each stage are taken for the time.

    The tokens of a stage vocab are learnt by the run itself; the figures are without them.
    """
    chosen, recipe = prepared.chosen, prepared.recipe
    tokenizer = prepared.base.tokenizer()
    stages: list[StagePlan] = []
    for stage in recipe.training.stages:
        if stage == "vocab":
            continue
        examples = prepared.examples(stage, tokenizer)
        settings = prepared.settings(stage, examples)
        steps = steps_of(settings, examples)
        seconds = steps * _a_step(prepared, tokenizer, examples, settings) if measure else 0.0
        held_out = prepared.gathered.held_out_of(stage)
        stages.append(
            _planned(
                stage,
                examples,
                settings,
                tokenizer,
                held_out=held_out,
                steps=steps,
                seconds=seconds,
            )
        )
    return Plan(
        stages=stages,
        method=chosen.method,
        chosen=chosen.said,
        needed_bytes=needed_bytes(
            chosen.method,
            prepared.config,
            prepared.parameters,
            sequence_tokens=chosen.sequence_tokens,
            micro_batch=chosen.micro_batch,
            activation_checkpointing=recipe.training.activation_checkpointing,
        ),
        measured_bytes=_peak_bytes() if measure else 0,
        memory_bytes=chosen.machine.memory_bytes,
        largest_micro_batch=largest_micro_batch(
            chosen.method,
            prepared.config,
            prepared.parameters,
            chosen.machine,
            sequence_tokens=chosen.sequence_tokens,
            most=64,
        ),
    )


def _planned(
    stage: str,
    examples: Examples,
    settings: StageSettings,
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    *,
    held_out: int,
    steps: int,
    seconds: float,
) -> StagePlan:
    counted = examples.counted
    return StagePlan(
        stage=stage,
        rows=counted.rows,
        tokens=counted.tokens,
        learnt=counted.learnt,
        text_bytes=counted.text_bytes,
        text_tokens=counted.text_tokens,
        replayed=counted.replayed,
        held_out=held_out,
        cut=counted.cut,
        dropped=len(counted.dropped),
        warning=counted.warning(),
        steps=steps,
        learning_rate=settings.learning_rate,
        seconds=seconds,
        shown=_shown(examples, tokenizer),
    )


def _a_step(
    prepared: Prepared,
    tokenizer: Any,  # noqa: ANN401
    examples: Examples,
    settings: StageSettings,
) -> float:
    """Return the seconds of a step: the median of a few that are taken and thrown away."""
    module = prepared.base.load(settings.device)
    training = prepared.recipe.training
    adapted = adapt(module, prepared.chosen.method, rank=training.rank, seed=training.seed)
    times: list[float] = []
    last = monotonic()

    def took(_: object) -> None:
        nonlocal last
        now = monotonic()
        times.append(now - last)
        last = now

    with tempfile.TemporaryDirectory(prefix="tapestry-plan-") as folder:
        train_stage(
            adapted,
            tokenizer,
            examples,
            replace(settings, steps=_MEASURED_STEPS + 1),
            folder=Path(folder),
            watch=Watch(on_progress=took),
        )
    return sorted(times[1:])[len(times[1:]) // 2]  # the first one warms up


def _shown(examples: Examples, tokenizer: Any) -> list[tuple[str, bool]]:  # noqa: ANN401
    """Return one example as pieces of text, each learnt or not."""
    columns = examples.columns
    if examples.kind == "tokens":
        at = examples.first
        ids = columns["input_ids"][at]
        learnt = [label != -100 for label in columns["labels"][at]]
    else:
        answer = "chosen_ids" if examples.kind == "pairs" else "completion_ids"
        ids = columns["prompt_ids"][0] + columns[answer][0]
        learnt = [False] * len(columns["prompt_ids"][0]) + [True] * len(columns[answer][0])
    pieces: list[tuple[str, bool]] = []
    start = 0
    ids, learnt = ids[:_SHOWN_TOKENS], learnt[:_SHOWN_TOKENS]
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or learnt[stop] != learnt[start]:
            pieces.append((tokenizer.decode(ids[start:stop]), learnt[start]))
            start = stop
    return pieces


def _peak_bytes() -> int:
    """Return the most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
