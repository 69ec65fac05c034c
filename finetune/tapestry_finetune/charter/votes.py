"""Whether all groups of a community stand behind a principle, as Polis counts it."""

import math
from collections.abc import Mapping

from tapestry_finetune.charter.settings import Votes


def agreement_of(votes: Votes) -> float:
    """Return a group's probability of agreeing: (agree + 1) / (votes + 2), so that few say little.

    Who saw the principle and passed counts as a vote that does not agree.
    """
    return (votes.agree + 1) / (votes.cast + 2)


def group_aware_consensus(votes: Mapping[str, Votes]) -> float:
    """Return the product over groups: high only where no group is against it, however small."""
    return math.prod(map(agreement_of, votes.values()))
