"""Sort a few rows column by column with minima and maxima alone.

Batcher's odd-even merge network (K. E. Batcher, Sorting networks and their applications, 1968),
without the comparators whose results nobody reads. Each comparator is one or two passes over
rows in the cache, several times faster than sorting every column by itself.

Shapes: K rows, c columns.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from tapestry.params.codecs import Float32Array

LARGEST_NETWORK = 64
"""Above this many rows sorting every column is as fast, and the network grows as K log^2 K."""


def ascending_middle(
    rows: list[Float32Array], *, trim: int, spare: Float32Array
) -> list[Float32Array]:
    """Return K - 2 * trim rows: each column's values, ascending, without the extremes.

    Args:
        rows: K arrays [c] float32 without NaN; their contents are lost.
        trim: Values dropped at either end of every column, 2 * trim < K.
        spare: [c] float32 scratch, which may be among the rows returned.
    """
    if len(rows) > LARGEST_NETWORK:
        ordered = np.sort(np.stack(rows), axis=0)
        return list(ordered[trim : len(rows) - trim])
    wires = list(rows)
    for low, high, keeps_minimum, keeps_maximum in comparators(len(rows), trim):
        if keeps_minimum and keeps_maximum:
            np.minimum(wires[low], wires[high], out=spare)
            np.maximum(wires[low], wires[high], out=wires[high])
            wires[low], spare = spare, wires[low]
        elif keeps_minimum:
            np.minimum(wires[low], wires[high], out=wires[low])
        else:
            np.maximum(wires[low], wires[high], out=wires[high])
    return wires[trim : len(rows) - trim]


@lru_cache(maxsize=256)
def comparators(wires: int, trim: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return (low, high, minimum is read, maximum is read) in order, for the middle of `wires`.

    A comparator puts the smaller of two wires on `low`, the larger on `high`.
    """
    read = set(range(trim, wires - trim))
    pruned = []
    for low, high in reversed(list(_batcher(wires))):
        keeps = low in read, high in read
        if any(keeps):
            pruned.append((low, high, *keeps))
            read |= {low, high}
    return tuple(reversed(pruned))


def _batcher(wires: int) -> Iterator[tuple[int, int]]:
    """Yield the comparators of a whole sort.

    Wires beyond the last would hold infinity, which a comparator leaves where it is: those are
    left out, so that any number of wires will do.
    """
    size = 1
    while size < wires:
        stride = size
        while stride >= 1:
            for start in range(stride % size, wires - stride, 2 * stride):
                for low in range(start, min(start + stride, wires - stride)):
                    if low // (2 * size) == (low + stride) // (2 * size):
                        yield low, low + stride
            stride //= 2
        size *= 2
