"""What was measured of one model, kept item by item so that two models can be compared.

A figure is the sum of its amounts over the sum of its weights: bits over bytes, right answers over
questions. The same items are resampled for both models (a paired bootstrap), so what is hard for
both widens no interval.

Shapes: N items, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 2**21
"""Held in memory."""


@dataclass(frozen=True)
class Measure:
    """A kind of figure: what people read, and which way is better."""

    label: str
    is_share: bool = True
    """In points of a hundred; else it is compared in percent of the base's figure."""
    more_is_better: bool = True
    is_judged: bool = True
    """Against the floor; else it is only shown."""


MEASURES: Mapping[str, Measure] = {
    "bits_per_byte": Measure(
        "bits per byte of held-out text", is_share=False, more_is_better=False
    ),
    "answer_bits": Measure(
        "bits per byte of held-out answers", is_share=False, more_is_better=False
    ),
    "choice": Measure("right choices", is_judged=False),
    "choice_per_byte": Measure("right choices, per byte"),
    "exact": Measure("exact answers"),
    "charter": Measure("prefers the charter's answer"),
    "charter_raw": Measure(
        "prefers the charter's answer, by the sum over its tokens", is_judged=False
    ),
    "language": Measure("answer lines in the right language"),
    "answered": Measure("answers what it must answer"),
    "refused": Measure("refuses what it must refuse"),
    "answered_guarded": Measure("answers what it must answer, guard on", is_judged=False),
    "refused_guarded": Measure("refuses what it must refuse, guard on", is_judged=False),
    "leaked": Measure("outputs that repeat protected text", more_is_better=False),
}


@dataclass(frozen=True)
class Series:
    """One figure of one model over N items."""

    measure: str
    """A key of `MEASURES`."""
    slice: str
    """Of what: a language, a suite, a principle."""
    items: tuple[str, ...]
    amounts: Floats
    """[N]."""
    weights: Floats
    """[N]."""

    @property
    def key(self) -> str:
        """Name the figure among all of a model."""
        return f"{self.measure}:{self.slice}"

    @property
    def figure(self) -> float | None:
        """The weighted mean; None where no item counts."""
        weight = float(self.weights.sum())
        return float(self.amounts.sum()) / weight if weight else None


@dataclass
class Measured:
    """Everything that was measured of one voice."""

    series: dict[str, Series] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    """To the prompts of the report, in their order."""
    values: dict[str, Any] = field(default_factory=dict)
    """Positions by survey and by behaviour: what has no better and no worse."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured as it should be."""

    def add(self, series: Sequence[Series]) -> None:
        """Take in figures; each has its key once."""
        for one in series:
            self.series[one.key] = one


def sliced(
    measure: str,
    name: str,
    items: Sequence[str],
    amounts: Sequence[float] | Floats,
    weights: Sequence[float] | Floats | None = None,
    *,
    tags: Sequence[Mapping[str, str]] = (),
) -> list[Series]:
    """Return the figure of all items, and that of every slice where there are several.

    Args:
        measure: A key of `MEASURES`.
        name: What all of the items are.
        items: An identity for each.
        amounts: Of each.
        weights: Of each; None: 1.
        tags: Of each item, such as its language and domain; a tag that all share makes no slice.
    """
    amounts_N = np.asarray(amounts, np.float64)
    weights_N = np.ones(len(amounts_N)) if weights is None else np.asarray(weights, np.float64)
    made = [Series(measure, name, tuple(items), amounts_N, weights_N)]
    for tag in sorted({key for one in tags for key in one}):
        values = [one.get(tag, "") for one in tags]
        if len(set(values)) < 2:
            continue
        for value in sorted(set(values) - {""}):
            at = [number for number, other in enumerate(values) if other == value]
            chosen = tuple(items[number] for number in at)
            made.append(
                Series(measure, f"{name}, {tag} {value}", chosen, amounts_N[at], weights_N[at])
            )
    return made


def resampled(arrays: Sequence[Floats], *, resamples: int, seed: int) -> list[Floats]:
    """Return the sums of several arrays over the same resampled items, [R] of each.

    Args:
        arrays: [N] each.
        resamples: R.
        seed: Of the draws.
    """
    count = len(arrays[0])
    random = np.random.default_rng(seed)
    rows = max(1, min(resamples, _DRAWS_AT_ONCE // count))
    sums: list[list[Floats]] = [[] for _array in arrays]
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), count)
        drawn_RN = random.integers(0, count, size, dtype=np.int32)
        for array, found in zip(arrays, sums, strict=True):
            found.append(array[drawn_RN].sum(axis=1))
    return [np.concatenate(found) for found in sums]


def interval(
    series: Series, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a figure over resampled items."""
    amounts_R, weights_R = resampled(
        [series.amounts, series.weights], resamples=resamples, seed=seed
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return _middle(amounts_R / weights_R, level)


def paired_interval(
    before: Series, after: Series, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the change from `before` to `after` over resampled items.

    The change is a difference, or for a figure that is no share, a fraction of `before`.

    Raises:
        ValueError: The two are not of the same items.
    """
    if before.items != after.items:
        raise ValueError(f"{before.key}: the two models were measured on different items")
    old_R, old_weights_R, new_R, new_weights_R = resampled(
        [before.amounts, before.weights, after.amounts, after.weights],
        resamples=resamples,
        seed=seed,
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        old_R, new_R = old_R / old_weights_R, new_R / new_weights_R
        is_share = MEASURES[before.measure].is_share
        return _middle(new_R - old_R if is_share else new_R / old_R - 1, level)


def _middle(values_R: Floats, level: float) -> tuple[float, float]:
    finite = values_R[np.isfinite(values_R)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
