"""Evaluate a localized model against its base: four arms, verdicts, and what to say first."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tapestry_finetune.assistants import Assistant
from tapestry_finetune.charter.settings import Charter
from tapestry_finetune.evaluation.contamination import contamination, contamination_said
from tapestry_finetune.evaluation.floor import Floor, VerdictRow, is_above_floor, judge
from tapestry_finetune.evaluation.harness import run_harness, side_by_side
from tapestry_finetune.evaluation.measuring import (
    Material,
    OnProgress,
    measure,
    read_material,
    with_prompt,
)
from tapestry_finetune.evaluation.positions import positions_of, positions_said
from tapestry_finetune.evaluation.preferences import ALL_CASES, Judge
from tapestry_finetune.evaluation.series import (
    MEASURES,
    Measured,
    interval,
    paired_interval,
)
from tapestry_finetune.evaluation.suites import Suites
from tapestry_finetune.rows.kinds import Row

BASE, PROMPTED = "base", "base + prompt"
LOCAL, LOCAL_PROMPTED = "localized", "localized + prompt"
VALUES = (
    *("charter", "charter_raw", "language", "answered", "answered_guarded"),
    *("refused", "refused_guarded", "leaked"),
)
"""Measures that a system prompt may change: shown for all four arms."""

_MOST_NAMED = 5
"""Of the figures below the floor, in the summary."""


@dataclass(frozen=True)
class ArmRow:
    """One values figure of every arm."""

    measure: str
    slice: str
    items: int
    arms: dict[str, tuple[float, float, float]]
    """Of each arm the figure and its interval."""


@dataclass(frozen=True)
class Shown:
    """A prompt with two answers."""

    prompt: str
    language: str
    base: str
    localized: str


@dataclass(frozen=True)
class Evaluation:
    """What a localized model is worth; `to_json` is `evaluation.json`."""

    passed: bool
    summary: list[str]
    """What a board reads, the most important first."""
    rows: list[VerdictRow]
    arms: list[ArmRow]
    answers: list[Shown]
    positions: dict[str, Any]
    """By survey and behaviour, of every arm."""
    floor: Floor
    beats_prompt: bool | None = None
    """Whether training beats the charter as a mere prompt; None: there is no charter."""
    about: dict[str, Any] = field(default_factory=dict)
    """Of what: name, base, digests; whatever the caller knows."""
    measured_on: dict[str, Any] = field(default_factory=dict)
    """What the suites held, by digest, and the settings."""
    notes: list[str] = field(default_factory=list)
    contamination: list[dict[str, Any]] = field(default_factory=list)
    """How much of each suite stands in the rows that were learnt from."""
    harness: dict[str, Any] = field(default_factory=dict)
    """Of lm-evaluation-harness, if it was asked."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        table = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in ("rows", "arms", "answers", "floor")
        }
        for name in ("rows", "arms", "answers"):
            table[name] = [dataclasses.asdict(one) for one in getattr(self, name)]
        plain = _plain({"format": 1, **table, "floor": self.floor.model_dump(mode="json")})
        return cast("dict[str, Any]", plain)


def _plain(value: object) -> object:
    """Return a value with null where there is no number: JSON knows no others."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def evaluate_assistant(
    assistant: Assistant,
    name: str,
    suites: Suites,
    floor: Floor | None = None,
    charter: Charter | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    learnt: Sequence[Row] = (),
    harness: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> Evaluation:
    """Measure a bundle of an assistant and its base, and compare them.

    Args:
        assistant: With the base and the bundle in memory.
        name: The bundle's.
        suites: What to measure.
        floor: What may be lost; None: the default.
        charter: Its held-out cases judge, its prompt makes two more arms; None: neither.
        about: What the report says of base and bundle.
        learnt: The rows that the bundle has learnt from, where they are at hand: the report says
            how much of the suites stands in them.
        harness: Folder of local tasks for lm-evaluation-harness; None: it is not asked.
        on_progress: Told what is measured, how many are done, and of how many.
    """
    material = read_material(suites, None if charter is None else Judge(charter))
    read_before = contamination(material, learnt, on_progress)
    arms = measure_arms(assistant, name, material, on_progress=on_progress)
    made = conclude(arms, material, floor or Floor(), about=about, read_before=read_before)
    if harness is None:
        return made
    found = {}
    for speaker, arm in ((None, BASE), (name, LOCAL)):
        on_progress(f"{arm}: lm-evaluation-harness", 0, 0)
        with assistant.speaking_as(speaker) as voice:
            found[arm] = run_harness(voice, harness)
    return dataclasses.replace(made, harness=side_by_side(found[BASE], found[LOCAL]))


def measure_arms(
    assistant: Assistant, name: str, material: Material, *, on_progress: OnProgress
) -> dict[str, Measured]:
    """Return what was measured of base and bundle, each without and with the charter's prompt."""
    arms: dict[str, Measured] = {}
    for speaker, plain, prompted in ((None, BASE, PROMPTED), (name, LOCAL, LOCAL_PROMPTED)):
        with assistant.speaking_as(speaker) as voice:
            arms[plain] = measure(voice, material, on_progress=_named(plain, on_progress))
            if material.judge is not None:
                arms[prompted] = measure(
                    with_prompt(voice, material.judge),
                    material,
                    only_values=True,
                    on_progress=_named(prompted, on_progress),
                )
    return arms


def conclude(
    arms: Mapping[str, Measured],
    material: Material,
    floor: Floor,
    *,
    about: Mapping[str, Any] | None = None,
    read_before: Sequence[dict[str, Any]] = (),
) -> Evaluation:
    """Compare what was measured: verdicts, four arms, and what to say first.

    Args:
        arms: What was measured of each.
        material: On what.
        floor: What may be lost.
        about: What the report says of base and bundle.
        read_before: How much of the suites stands in what was learnt from.
    """
    suites = material.suites
    resamples, seed = suites.resamples, suites.seed
    rows = judge(arms[BASE], arms[LOCAL], floor, resamples=resamples, seed=seed)
    positions = positions_of(
        {name: measured.values for name, measured in arms.items()},
        {"survey": material.survey, "behaviour": material.behaviour},
        resamples=resamples,
        seed=seed,
    )
    summary = [_said_of(rows), *contamination_said(read_before), *positions_said(positions)]
    against = _against_prompt(arms, suites)
    if against is not None:
        beats, line = against
        summary.insert(1 if beats else 0, line)
    shown = zip(material.prompts, arms[BASE].answers, arms[LOCAL].answers, strict=True)
    return Evaluation(
        passed=is_above_floor(rows),
        summary=summary,
        rows=rows,
        arms=_arm_rows(arms, suites),
        answers=[
            Shown(prompt.text, prompt.language, base, localized)
            for prompt, base, localized in list(shown)[: suites.answers]
        ],
        positions=positions,
        floor=floor,
        beats_prompt=None if against is None else against[0],
        about=dict(about or {}),
        measured_on=material.described(),
        notes=_notes(arms),
        contamination=list(read_before),
    )


def _named(arm: str, on_progress: OnProgress) -> OnProgress:
    return lambda what, done, of: on_progress(f"{arm}: {what}", done, of)


def _arm_rows(arms: Mapping[str, Measured], suites: Suites) -> list[ArmRow]:
    rows: list[ArmRow] = []
    for key, first in arms[BASE].series.items():
        if first.measure not in VALUES:
            continue
        found: dict[str, tuple[float, float, float]] = {}
        for name, measured in arms.items():
            one = measured.series.get(key)
            if one is not None and one.figure is not None:
                low, high = interval(one, resamples=suites.resamples, seed=suites.seed)
                found[name] = (one.figure, low, high)
        rows.append(ArmRow(first.measure, first.slice, len(first.items), found))
    return rows


def _against_prompt(arms: Mapping[str, Measured], suites: Suites) -> tuple[bool, str] | None:
    """Return whether training beats the charter as a mere prompt, and how to say so."""
    key = f"charter:{ALL_CASES}"
    if PROMPTED not in arms or key not in arms[PROMPTED].series:
        return None
    prompted, trained = arms[PROMPTED].series[key], arms[LOCAL].series[key]
    low, high = paired_interval(prompted, trained, resamples=suites.resamples, seed=suites.seed)
    shares = (trained.figure or 0.0, prompted.figure or 0.0)
    figures = (
        f"{100 * shares[0]:.0f} % against {100 * shares[1]:.0f} % of the charter's held-out cases "
        f"({points(shares[0] - shares[1])}; 95 %: {100 * low:+.0f} to {100 * high:+.0f})"
    )
    if low > 0:
        return True, f"Training beats the charter as a mere prompt: {figures}."
    return False, (
        f"Training does not beat the charter as a mere prompt: {figures}. "
        "The prompt costs nothing; use it, or train on more cases."
    )


def _said_of(rows: Sequence[VerdictRow]) -> str:
    counts = {
        verdict: sum(row.verdict == verdict for row in rows)
        for verdict in ("improved", "kept", "REGRESSED")
    }
    if not rows:
        return "Nothing was compared: the suites hold nothing that both models could be asked."
    said = f"Of {len(rows)} figures {counts['improved']} improved, {counts['kept']} kept"
    if not counts["REGRESSED"]:
        return f"{said}, none is below the floor."
    return f"Below the floor: {below_the_floor(rows)}. {said}, {counts['REGRESSED']} REGRESSED."


def below_the_floor(rows: Sequence[VerdictRow]) -> str:
    """Return which figures are below the floor, a measure with all its slices."""
    worse = [row for row in rows if row.verdict == "REGRESSED"]
    slices: dict[str, list[str]] = {}
    for row in worse[:_MOST_NAMED]:
        slices.setdefault(row.measure, []).append(row.slice)
    named = [name_of(measure_name, ", ".join(of)) for measure_name, of in slices.items()]
    more = [f"{len(worse) - _MOST_NAMED} more"] if len(worse) > _MOST_NAMED else []
    return "; ".join([*named, *more])


def _notes(arms: Mapping[str, Measured]) -> list[str]:
    """Return what could not be told, or measured as it should be."""
    untold = [
        f"{name_of(one.measure, one.slice)}: of {arm}, nothing could be told; no verdict"
        for arm in (BASE, LOCAL)
        for one in arms[arm].series.values()
        if one.figure is None
    ]
    return untold + [f"{arm}: {note}" for arm, measured in arms.items() for note in measured.notes]


def name_of(measure_name: str, slice_: str) -> str:
    """Return how people read a figure's name."""
    return f"{MEASURES[measure_name].label} ({slice_})"


def points(change: float) -> str:
    """Return a difference of shares in points of a hundred, with its sign."""
    return f"{100 * change:+.1f} points"
