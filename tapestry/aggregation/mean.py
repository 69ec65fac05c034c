"""The weighted mean, one contribution at a time.

Shapes: n elements of a fragment.
"""

import numpy as np

from tapestry.params.codecs import Float32Array


def add_weighted(total: Float32Array, delta: Float32Array, weight: float) -> None:
    """Add `weight * delta` to `total` in place.

    Multiply, then add, each rounded to float32: no fused operation, no reduction, so the result
    is the same to the bit on every machine as long as contributions come in the same order.

    Args:
        total: [n] float32, changed.
        delta: [n] float32, changed: it is scratch space afterwards.
        weight: The member's weight times its clip factor.
    """
    np.multiply(delta, np.float32(weight), out=delta)
    np.add(total, delta, out=total)
