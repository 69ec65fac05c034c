"""What a bundle, carried over in several ways, is worth on a newer consensus."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tapestry_finetune.evaluation.floor import VerdictRow
from tapestry_finetune.evaluation.series import MEASURES
from tapestry_finetune.publishing import BelowFloorError


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One model of the table."""

    name: str
    figures: dict[str, float]
    """By the figure's key."""
    passed: bool
    gain: float
    """On the new base; of candidates."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """The candidates beside what there was."""

    columns: list[Column]
    chosen: str
    kept_of_gain: float | None
    """Of the gain that the bundle had, what its untouched copy has on the new base; of held-out
    text of the main language."""
    drift: float | None
    layers: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON table."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "chosen": self.chosen,
            "kept_of_gain": self.kept_of_gain,
            "drift": self.drift,
            "layers": self.layers,
        }


class NoneAboveFloorError(BelowFloorError):
    """Even the best candidate is below the floor."""

    def __init__(self, error: BelowFloorError, compared: Compared) -> None:
        """Say so as `error` does, with how the candidates compare."""
        more = "; with rebase also more --steps, or --retrain for a whole new run"
        super().__init__(f"{error}{more}", error.evaluation)
        self.compared = compared


def gain_of(rows: Sequence[VerdictRow], languages: Sequence[str]) -> float:
    """Return the mean improvement over measures, each the mean of its figures.

    A lower figure is an improvement where it is one, and a change that may as well be none (its
    interval has 0 in it) counts as none: of two cases judged otherwise nobody can tell. Text of
    other languages is left to the floor: in a mean with it, the candidate that undoes most of the
    community's work would always win.
    """
    ours = [row for row in rows if row.measure != "bits_per_byte" or row.slice in languages]
    changes: dict[str, list[float]] = {}
    for row in ours or rows:
        change = 0.0 if row.low <= 0 <= row.high else row.change
        more = change if MEASURES[row.measure].more_is_better else -change
        changes.setdefault(row.measure, []).append(more)
    return fmean(map(fmean, changes.values())) if changes else 0.0
