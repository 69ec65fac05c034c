"""One outer step over the whole vector, fragment by fragment.

Pure: the same base, state, contributions and weights give the same bytes, on every run and
machine. Holds a few fragments at a time, whatever the size of the model and the number of
contributions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tapestry.aggregation.mean import add_weighted
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.params.codecs import Codec, Float32Array
from tapestry.params.layout import ParameterLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedContribution:
    """A recorded contribution and what the round decided about it."""

    member_id: str
    weight: float
    """Share in the average; over a round's contributions these sum to 1."""
    clip_factor: float
    codec: Codec
    read_fragment: Callable[[int], bytes]
    """Fragment index -> its bytes as they were received."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatedFragment:
    """A fragment of the new consensus and of the outer optimizer's state."""

    index: int
    base: Float32Array
    buffer: Float32Array


def outer_step(
    base: Float32Array,
    buffer: Float32Array | None,
    contributions: Sequence[WeightedContribution],
    *,
    layout: ParameterLayout,
    optimizer: OuterOptimizer,
) -> Iterator[UpdatedFragment]:
    """Yield the updated fragments in index order.

    Contributions are added in the order of their member ids, whatever order they come in.

    Args:
        base: [P] float32, the base checkpoint; may be memory-mapped, is not changed.
        buffer: [P] float32 momentum before this round, or None for zeros; not changed.
        contributions: At least one.
        layout: Of the vector.
        optimizer: The outer optimizer.

    Raises:
        RejectedError: A recorded fragment does not decode.
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.member_id)
    first, last = layout.bounds(0)
    scratch = np.empty(last - first, np.float32)
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        total = np.zeros(stop - start, np.float32)
        for contribution in ordered:
            delta = scratch[: stop - start]
            contribution.codec.decode_into(contribution.read_fragment(index), delta)
            add_weighted(total, delta, contribution.weight * contribution.clip_factor)
        new_base = np.array(base[start:stop], np.float32)
        new_buffer = (
            np.zeros_like(new_base) if buffer is None else np.array(buffer[start:stop], np.float32)
        )
        optimizer.step(new_base, total, new_buffer)
        yield UpdatedFragment(index=index, base=new_base, buffer=new_buffer)
