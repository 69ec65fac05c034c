"""The coordinate-wise trimmed mean (Yin et al., 2018, arXiv 1803.01498).

Bounds the pull of up to `trim` contributions, whatever they send: every coordinate of the result
lies between two values of the others. Robust is not fair: where one institution alone moves a
coordinate, as the only one with its language does for its words, its value is an extreme and is
dropped like an attacker's. With a trim of 1 a language needs two institutions to be heard in full.

Shapes: K contributions, n elements.
"""

import numpy as np

from tapestry.aggregation.mean import add_weighted
from tapestry.aggregation.sorting import ascending_middle
from tapestry.params.codecs import Float32Array


def trimmed_mean(
    rows: list[Float32Array], *, trim: int, out: Float32Array, spare: Float32Array
) -> None:
    """Put into `out` each coordinate's mean without its `trim` largest and smallest values.

    The definition, to the bit: the K - 2 * trim values that are left, in ascending order, are
    each multiplied by float32(1 / (K - 2 * trim)) and added up. Zero has no sign in the result,
    because minima of signed zeros differ between processors.

    Args:
        rows: K arrays [n] float32, finite; their contents are lost.
        trim: 2 * trim < K, which `Rule.require` has made sure of.
        out: [n] float32, overwritten.
        spare: [n] float32 scratch.
    """
    kept = ascending_middle(rows, trim=trim, spare=spare)
    out.fill(0)
    for row in kept:
        add_weighted(out, row, 1 / len(kept))
    np.add(out, np.float32(0), out=out)
