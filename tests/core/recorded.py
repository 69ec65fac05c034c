"""Contributions in memory, as a coordinator would have them on disk."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.pipeline import aggregate, decide
from tapestry.aggregation.rules import Rule
from tapestry.aggregation.weights import clip_factors
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.layout import ParameterLayout

Vectors = npt.NDArray[np.floating]


def vector_layout(elements: int) -> ParameterLayout:
    return ParameterLayout.from_shapes([("w", (elements,))])


def member(number: int) -> str:
    return f"m{number:02}"


def recorded(
    vectors: Vectors | Sequence[Vectors],
    layout: ParameterLayout | None = None,
    *,
    codec: str = "float32",
    weights: Sequence[float] | None = None,
    factors: Mapping[str, float] | None = None,
) -> list[WeightedContribution]:
    """Return one contribution a row; equal weights and no clipping if nothing else is said."""
    layout = layout or vector_layout(len(vectors[0]))
    chosen = codec_named(codec)
    parts = []
    for number, vector in enumerate(vectors):
        encoded = [
            chosen.encode(np.asarray(vector[slice(*layout.bounds(i))], np.float32))
            for i in range(layout.fragments)
        ]
        parts.append(
            WeightedContribution(
                member_id=member(number),
                weight=1 / len(vectors) if weights is None else weights[number],
                clip_factor=1.0 if factors is None else factors[member(number)],
                codec=chosen,
                read_fragment=encoded.__getitem__,
            )
        )
    return parts


def clipped(
    vectors: Vectors, *, clip: float = 1.5, codec: str = "float32"
) -> list[WeightedContribution]:
    """Return contributions with the factors that the coordinator's clip gives them."""
    norms = {member(k): norm([squared_norm(v)]) for k, v in enumerate(vectors)}
    return recorded(vectors, factors=clip_factors(norms, clip=clip), codec=codec)


def combined(
    contributions: Sequence[WeightedContribution], rule: Rule, layout: ParameterLayout
) -> Float32Array:
    """Return the whole aggregate, decided and summed."""
    decided = decide(contributions, rule=rule, layout=layout)
    return replayed(decided, rule, layout)


def replayed(
    decided: Sequence[WeightedContribution], rule: Rule, layout: ParameterLayout
) -> Float32Array:
    """Return the whole aggregate from what is recorded."""
    fragments = aggregate(decided, rule=rule, layout=layout)
    return np.concatenate([fragment.copy() for fragment in fragments])
