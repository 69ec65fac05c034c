"""Which rule combines a round's contributions, and what each needs to hold.

| rule | kind | withstands | to a language that few institutions have |
|---|---|---|---|
| `mean` | weights | one lie of a clipped length | its share, by tokens and cap |
| `centred-clipping` | Gram | f < K / 2, pull radius / K | shortened, never dropped |
| `geometric-median` | Gram | f < K / 2 | a little less than its share |
| `trimmed-mean` | coordinate | `byzantine` < K / 2 | dropped where it is alone |
| `multi-krum` | Gram | `byzantine` < K / 2 | dropped whole where it is alone |
| `median` | coordinate | f < K / 2 | unheard |

All but the mean give every member one vote: tokens are a claim, and a robust rule that counted
claimed tokens would let a liar buy its majority.

Shapes: K contributions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tapestry.aggregation.centred_clipping import centred_clipping
from tapestry.aggregation.geometric_median import geometric_median
from tapestry.aggregation.gram import Float64Array, Gram
from tapestry.aggregation.median import most_trimmed
from tapestry.aggregation.multi_krum import multi_krum
from tapestry.config import nearest
from tapestry.errors import ConfigError

RuleName = Literal[
    "mean", "trimmed-mean", "median", "multi-krum", "geometric-median", "centred-clipping"
]
MergeName = Literal["mean", "rda"]

RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)
COORDINATE_RULES = frozenset({"trimmed-mean", "median"})
_COUNTING_LIARS = frozenset({"trimmed-mean", "multi-krum"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """An aggregation rule and its parameters.

    Raises:
        ConfigError: The parameters cannot go together.
    """

    name: RuleName = "mean"
    byzantine: int = 0
    """f: members that may send anything; of `trimmed-mean`, `multi-krum` and mixing."""
    mixing: bool = False
    """Whether nearest-neighbour mixing goes before the rule."""
    merge: MergeName = "mean"
    """`rda` averages directions and lengths apart, tensor by tensor, with the rule's weights."""
    radius: float = 1.0
    """Of `centred-clipping`, in median norms."""

    def __post_init__(self) -> None:
        if self.merge == "rda" and self.is_by_coordinate:
            raise ConfigError(
                f'merge = "rda" needs one weight a contribution, and {self.name} has none: set '
                f'merge = "mean", or rule to one of {", ".join(_weighting())}'
            )
        if self.byzantine < 0 or not self.radius > 0:
            raise ConfigError(
                f"byzantine = {self.byzantine} and radius = {self.radius:g} must be at least 0 "
                "and above 0"
            )

    @property
    def is_by_coordinate(self) -> bool:
        """Whether it sees the contributions coordinate by coordinate, without weights."""
        return self.name in COORDINATE_RULES

    @property
    def is_one_vote_each(self) -> bool:
        """Whether tokens have no part in the weights."""
        return self.name != "mean"

    @property
    def needs_gram(self) -> bool:
        """Whether a first pass over all fragments comes before the sum."""
        return self.mixing or self.name not in COORDINATE_RULES | {"mean"}

    def require(self, contributions: int, *, what: str = "contributions") -> None:
        """Make sure that the rule can hold.

        Args:
            contributions: K.
            what: They are, for the message.

        Raises:
            ConfigError: `byzantine` liars are half of them or more; the message says what to set.
        """
        if not (self.mixing or self.name in _COUNTING_LIARS) or 2 * self.byzantine < contributions:
            return
        name = f"{self.name} with mixing" if self.mixing else self.name
        raise ConfigError(
            f"byzantine = {self.byzantine} cannot hold with {contributions} {what}: {name} needs "
            f"more than {2 * self.byzantine}; set byzantine <= {most_trimmed(contributions)} or "
            f"raise quorum to {2 * self.byzantine + 1}"
        )

    def trim(self, contributions: int) -> int:
        """Return how many extremes a coordinate rule drops at either end."""
        return self.byzantine if self.name == "trimmed-mean" else most_trimmed(contributions)

    def weights(self, gram: Gram, given_K: Float64Array) -> Float64Array:
        """Return [K] weights in [0, 1] that sum to at most 1.

        Args:
            gram: Of the contributions, or of their mixtures.
            given_K: What tokens and cap gave each, which the mean keeps.
        """
        if self.name == "multi-krum":
            weights_K = multi_krum(gram, byzantine=self.byzantine)
        elif self.name == "geometric-median":
            weights_K = geometric_median(gram)
        elif self.name == "centred-clipping":
            weights_K = centred_clipping(gram, radius=self.radius)
        elif self.name == "mean":
            weights_K = given_K
        else:
            weights_K = np.full(gram.contributions, 1 / gram.contributions)
        return weights_K


def known_rule(name: str) -> RuleName:
    """Return `name` if a rule is called so.

    Raises:
        ConfigError: None is; the message names the nearest.
    """
    for known in RULE_NAMES:
        if name == known:
            return known
    raise ConfigError(
        f"unknown rule {name!r:.40}; did you mean {nearest(str(name), RULE_NAMES)}? "
        f"This version has {', '.join(RULE_NAMES)}"
    )


def _weighting() -> list[str]:
    return [name for name in RULE_NAMES if name not in COORDINATE_RULES]
