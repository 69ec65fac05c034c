"""Nearest-neighbour mixing (NNM: Allouah et al., 2023, arXiv 2302.01772), before any rule.

Every contribution is replaced by the mean of the K - f contributions nearest to it, itself among
them. Makes every robust rule optimal against f liars among institutions with different data, at
the price that a minority smaller than K - f is mixed with the others before it is heard.

Shapes: K contributions, J = K + 1 points.
"""

import numpy as np

from tapestry.aggregation.gram import Float64Array, Gram


def mixing_shares(gram: Gram, *, byzantine: int) -> Float64Array:
    """Return [K, K]: in row i 1 / (K - f) for the K - f contributions nearest to i, else 0.

    Of equally near ones the member whose id comes first is taken.

    Args:
        gram: Of the contributions.
        byzantine: f, with 2 * f < K.
    """
    distances_KK = gram.distances()[:-1, :-1]
    np.fill_diagonal(distances_KK, -1.0)  # itself comes first, whatever else is at distance 0
    kept = gram.contributions - byzantine
    nearest = np.argsort(distances_KK, axis=1, kind="stable")[:, :kept]
    shares_KK = np.zeros_like(distances_KK)
    np.put_along_axis(shares_KK, nearest, 1 / kept, axis=1)
    return shares_KK
