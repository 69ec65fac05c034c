"""What a bundle, carried over in several ways, is worth on a newer consensus."""

from dataclasses import asdict, dataclass
from typing import Any

from tapestry_finetune.publishing import BelowFloorError


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One model of the table."""

    name: str
    figures: dict[str, float]
    """By the figure's key."""
    passed: bool
    gain: float
    """Mean improvement on the new base, of text only in the model's languages; of candidates."""
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
