"""The quality floor: what a localized model may lose, and the verdict on each figure."""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from tapestry.config import Settings
from tapestry_finetune.evaluation.series import MEASURES, Measured, Series, paired_interval

_FEWEST_TEXTS = 8
"""Texts that an interval can be taken from."""
_FEWEST_JUDGED = 4
"""Texts from which a verdict follows, short of a change of so many times what the floor allows:"""
_CERTAINLY = 5

Verdict = Literal["improved", "kept", "REGRESSED"]


class Floor(Settings):
    """What a localized model may lose against its base before it counts as worse."""

    bits_per_byte_percent: float = Field(default=2.0, ge=0)
    """Of held-out text, in percent of the base's bits per byte."""
    accuracy_points: float = Field(default=2.0, ge=0)
    """Of every share (right choices, refusals, ...), in points of a hundred."""
    leaked_points: float = Field(default=0.0, ge=0)
    """Of outputs that repeat protected text, in points of a hundred."""
    strict: bool = False
    """True: a share has REGRESSED as soon as a loss beyond the floor cannot be excluded, which
    takes thousands of questions; false: when a loss is certain and may lie beyond the floor."""
    overrides: dict[str, float] = Field(default={})
    """Tolerances of single figures, such as "bits_per_byte:eng" = 5.0 or "refused" = 0.0."""

    @field_validator("overrides")
    @classmethod
    def _known(cls, overrides: dict[str, float]) -> dict[str, float]:
        for key, tolerance in overrides.items():
            if key.partition(":")[0] not in MEASURES:
                raise ValueError(f"{key!r} names no measure; there are {', '.join(MEASURES)}")
            if not tolerance >= 0:
                raise ValueError(f"{key!r} = {tolerance}: a tolerance is 0 or more")
        return overrides

    def tolerance(self, measure: str, slice_: str) -> float:
        """Return what a figure may lose, as a fraction."""
        default = self.accuracy_points
        if not MEASURES[measure].is_share:
            default = self.bits_per_byte_percent
        elif measure == "leaked":
            default = self.leaked_points
        chosen = self.overrides.get(measure, default)
        return self.overrides.get(f"{measure}:{slice_}", chosen) / 100


@dataclass(frozen=True)
class VerdictRow:
    """One figure of two models, and what the floor says of it."""

    measure: str
    slice: str
    items: int
    base: float
    candidate: float
    change: float
    """A difference of shares, or a fraction of the base's figure; as `low`, `high`."""
    low: float
    high: float
    tolerance: float
    verdict: Verdict
    note: str = ""


def judge(
    base: Measured, candidate: Measured, floor: Floor, *, resamples: int = 2000, seed: int = 0
) -> list[VerdictRow]:
    """Compare two models on every figure that both have and the floor is about."""
    return [
        _row(before, candidate.series[key], floor, resamples=resamples, seed=seed)
        for key, before in base.series.items()
        if key in candidate.series
        and MEASURES[before.measure].is_judged
        and before.figure is not None
        and candidate.series[key].figure is not None
    ]


def is_above_floor(rows: list[VerdictRow]) -> bool:
    """Whether no figure has regressed."""
    return all(row.verdict != "REGRESSED" for row in rows)


def _row(before: Series, after: Series, floor: Floor, *, resamples: int, seed: int) -> VerdictRow:
    measure = MEASURES[before.measure]
    old, new = before.figure or 0.0, after.figure or 0.0
    change = new - old
    if not measure.is_share:
        change = new / old - 1 if old else math.nan
    low, high = paired_interval(before, after, resamples=resamples, seed=seed)
    tolerance = floor.tolerance(before.measure, before.slice)
    losses = (-change, -high, -low) if measure.more_is_better else (change, low, high)
    strict = floor.strict or not measure.is_share or before.measure == "leaked"
    verdict, note = _verdict(*losses, tolerance, items=len(before.items), strict=strict)
    if not note and not measure.is_share and len(before.items) < _FEWEST_TEXTS:
        texts = "1 text" if len(before.items) == 1 else f"{len(before.items)} texts"
        note = f"of {texts} only: the interval says little"
        if (
            len(before.items) < _FEWEST_JUDGED
            and not floor.strict
            and abs(losses[0]) <= _CERTAINLY * tolerance
        ):
            few = "is" if len(before.items) == 1 else "are"
            verdict, note = "kept", f"{texts} {few} too few to tell; give more in [evaluation] text"
    return VerdictRow(
        measure=before.measure,
        slice=before.slice,
        items=len(before.items),
        base=old,
        candidate=new,
        change=change,
        low=low,
        high=high,
        tolerance=tolerance,
        verdict=verdict,
        note=note,
    )


def _verdict(
    loss: float, least: float, most: float, tolerance: float, *, items: int, strict: bool
) -> tuple[Verdict, str]:
    """Return the verdict on a loss that lies between `least` and `most`, and what limits it."""
    if not all(math.isfinite(one) for one in (loss, least, most)):
        return "REGRESSED", "the model gives no number"
    if most < 0:
        return "improved", ""
    if most <= tolerance:
        return "kept", ""
    if strict or least > 0:
        return "REGRESSED", ""
    return "kept", f"{items} items are too few to exclude a loss of {100 * most:.0f} points"
