"""Centred clipping (Karimireddy et al., 2020, arXiv 2012.10333), from "change nothing".

From a reference point, average what every contribution adds to it, each addition clipped to a
radius; repeat from the point reached. The reference starts at the origin, so that no earlier
round has a say: the attack that builds up over rounds (ROP, arXiv 2208.09894) needs a reference
that remembers. The pull of a liar is at most radius / K a step. A minority's contribution is
shortened like any other far one and never dropped, which makes this one of the fairer rules.

Shapes: K contributions, J = K + 1 points.
"""

import numpy as np

from tapestry.aggregation.gram import Float64Array, Gram

STEPS = 5


def centred_clipping(gram: Gram, *, radius: float) -> Float64Array:
    """Return [K] weights, which sum to at most 1; the rest is the origin's.

    Args:
        gram: Of the contributions.
        radius: Of the clipping, as a multiple of the contributions' median norm.
    """
    median_norm = float(np.median(gram.distances()[:-1, -1]))
    return clipped_steps(gram, radius=radius * median_norm, steps=STEPS)


def clipped_steps(gram: Gram, *, radius: float, steps: int) -> Float64Array:
    """Return [K] weights after `steps` from the origin with an absolute `radius`."""
    contributions = gram.contributions
    weights_J = np.append(np.zeros(contributions), 1.0)
    for _ in range(steps):
        distances_K = gram.distances_to(weights_J)
        factors_K = np.ones(contributions)
        far_K = distances_K > radius
        factors_K[far_K] = radius / distances_K[far_K]
        weights_J *= 1 - factors_K.sum() / contributions
        weights_J[:-1] += factors_K / contributions
    return weights_J[:-1]
