"""What the rules take: recorded contributions, decoded one fragment at a time into reused buffers.

Shapes: n elements of a fragment, c columns of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tapestry.errors import RejectedError
from tapestry.params.codecs import Codec, Float32Array
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout

_CACHE_BYTES = 2**20
"""Rows of a block together; a little more than a core's second-level cache was fastest."""
_FEWEST_COLUMNS = 2**11
_MOST_COLUMNS = 2**15


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedContribution:
    """A recorded contribution and what the round decided about it."""

    member_id: str
    weight: float
    """Share in the aggregate, in [0, 1]; over a round's contributions they sum to at most 1."""
    clip_factor: float
    codec: Codec
    read_fragment: Callable[[int], bytes]
    """Fragment index -> its bytes as they were received."""
    neighbours: tuple[str, ...] = ()
    """Members, this one among them, whose mean stands in this contribution's place; empty where
    it stands for itself. Coordinate rules alone need it: for the others it is in the weights."""


def in_member_order(contributions: Sequence[WeightedContribution]) -> list[WeightedContribution]:
    """Return contributions by member id, the order of every float32 operation on them.

    Raises:
        RejectedError: There is none, or one member has two.
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.member_id)
    if not ordered:
        raise RejectedError("no contribution: there is nothing to aggregate")
    for one, other in pairwise(ordered):
        if one.member_id == other.member_id:
            raise RejectedError(f"{one.member_id} has two contributions: only one can count")
    return ordered


def decode_into(contribution: WeightedContribution, index: int, out: Float32Array) -> None:
    """Decode fragment `index` of a contribution into `out` ([n] float32).

    Raises:
        RejectedError: The recorded bytes do not decode to n finite elements.
    """
    contribution.codec.decode_into(contribution.read_fragment(index), out)


def longest_fragment(layout: ParameterLayout) -> int:
    """Return the number of elements that a buffer for any fragment needs."""
    return min(layout.elements, FRAGMENT_ELEMENTS)


def block_columns(*, rows: int) -> int:
    """Return of how many columns `rows` rows lie in the cache together."""
    return min(max(_CACHE_BYTES // (4 * rows), _FEWEST_COLUMNS), _MOST_COLUMNS)


def column_blocks(elements: int, *, rows: int) -> Iterator[slice]:
    """Cut `elements` columns into blocks for `rows` rows.

    The cut never changes a result: what is done block by block is elementwise.
    """
    columns = block_columns(rows=rows)
    for start in range(0, elements, columns):
        yield slice(start, min(start + columns, elements))
