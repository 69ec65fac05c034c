"""The geometric median (RFA: Pillutla et al., 2019, arXiv 1912.13445).

The point with the smallest sum of distances to the contributions. Withstands any minority of
liars, however far away they are. It is the mildest of the robust rules on minorities: nearly
orthogonal contributions of equal length, as different languages give, have nearly equal weights;
one whose members agree with each other still pulls less than its share against a larger group.

Shapes: K contributions, J = K + 1 points.
"""

import numpy as np

from tapestry.aggregation.gram import Float64Array, Gram

SMOOTHING = 1e-3
"""Distances below this part of the distances among the closest majority count as that much."""
MOST_STEPS = 200
_TOLERANCE = 1e-10


def geometric_median(gram: Gram) -> Float64Array:
    """Return [K] weights, which sum to 1, of the smoothed geometric median.

    The smoothing keeps a contribution that lies exactly on the median from taking all the weight.
    """
    return weiszfeld(gram, floor=SMOOTHING * _honest_distance(gram), steps=MOST_STEPS)


def weiszfeld(gram: Gram, *, floor: float, steps: int) -> Float64Array:
    """Return [K] weights after at most `steps` of Weiszfeld's iteration.

    A step takes the mean with weights 1 / max(floor, distance to the point before). Points are
    combinations of the contributions, so only the Gram matrix is needed. It starts from the mean
    of the majority nearest to the most central contribution: the mean of all, carried away by a
    liar, could be farther off than the iteration comes back.

    Args:
        gram: Of the contributions.
        floor: Smallest distance that is divided by; 0 where all contributions are equal.
        steps: Fewer are taken once no weight changes any more.
    """
    distances_KK = gram.distances()[:-1, :-1]
    central = int(np.argmin(distances_KK.sum(axis=1)))
    majority = np.argsort(distances_KK[central], kind="stable")[: _majority(gram)]
    weights_K = np.zeros(gram.contributions)
    weights_K[majority] = 1 / len(majority)
    for _ in range(steps):
        distances_K = np.maximum(gram.distances_to(np.append(weights_K, 0.0)), floor)
        nearest = distances_K.min()
        if nearest == 0:
            return weights_K
        closeness_K = nearest / distances_K
        updated_K = closeness_K / closeness_K.sum()
        change = float(np.abs(updated_K - weights_K).max())
        weights_K = updated_K
        if change < _TOLERANCE:
            break
    return weights_K


def _honest_distance(gram: Gram) -> float:
    """Return a distance that no minority of liars can push above the largest among the honest.

    A majority of h contributions has h * (h - 1) / 2 distances; so many are at most its largest.
    """
    between = np.sort(gram.distances()[:-1, :-1][np.triu_indices(gram.contributions, k=1)])
    pairs = min(_majority(gram) * (_majority(gram) - 1) // 2, len(between))
    return float(between[pairs - 1]) if pairs else 0.0


def _majority(gram: Gram) -> int:
    """Return the fewest contributions that are more than half of them."""
    return gram.contributions // 2 + 1
