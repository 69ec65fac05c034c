"""Multi-Krum (Blanchard et al., 2017, arXiv 1703.02757), scored as in arXiv 2302.01772.

The mean of the K - f contributions that lie closest to their nearest others; each of those has
weight 1 / (K - f), the others none. Robust for K > 2f. Robust is not fair: an institution whose
language nobody shares lies far from everybody, honest or not, and is what this rule drops first.
Use it where several institutions share every language; a weight of 0 in a manifest is a reason to
ask, not a verdict.

Shapes: K contributions, J = K + 1 points.
"""

import numpy as np

from tapestry.aggregation.gram import Float64Array, Gram


def multi_krum(gram: Gram, *, byzantine: int) -> Float64Array:
    """Return [K] weights: equal for those selected, 0 for the `byzantine` worst.

    A contribution's score is the sum of squared distances to its K - f - 1 nearest others; of
    equal scores the member whose id comes first is selected.

    Args:
        gram: Of the contributions.
        byzantine: f, with 2 * f < K.
    """
    squared_KK = gram.distances()[:-1, :-1] ** 2
    np.fill_diagonal(squared_KK, -1.0)  # itself comes first, whatever else is at distance 0
    kept = gram.contributions - byzantine
    scores_K = np.sort(squared_KK, axis=1)[:, 1:kept].sum(axis=1)
    weights_K = np.zeros(gram.contributions)
    weights_K[np.argsort(scores_K, kind="stable")[:kept]] = 1 / kept
    return weights_K
