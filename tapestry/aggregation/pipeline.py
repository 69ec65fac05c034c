"""One outer step over the whole vector, fragment by fragment.

```
weighted = decide(contributions, rule=rule, layout=layout)       # once; recorded in the manifest
for fragment in outer_step(base, state, weighted, rule=rule, ...):  # repeated by whoever verifies
```

`decide` turns a rule of distances into one weight a contribution; what it decides is recorded.
`outer_step` is pure: the same base, state, recorded bytes and recorded weights give the same bytes,
on every run and machine, in whatever order the contributions come. Both hold a few fragments (the
coordinate rules and `decide` one of every contribution), whatever the size of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tapestry.aggregation.contributions import (
    WeightedContribution,
    column_blocks,
    in_member_order,
    longest_fragment,
)
from tapestry.aggregation.gram import Float64Array, gram_of
from tapestry.aggregation.merging import Merge, TrimmedMean, WeightedMean
from tapestry.aggregation.mixing import mixing_shares
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.rda import RdaMerge
from tapestry.aggregation.rules import Rule
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout

MEAN = Rule()

ReadBase = Callable[[int], Float32Array]
"""Fragment index -> [n] float32 of the base, an array that may be overwritten."""
ReadState = Callable[[int], tuple[Float32Array, ...]]
"""Fragment index -> the optimizer's state vectors, [n] float32, which may be overwritten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatedFragment:
    """A fragment of the new consensus and of the outer optimizer's state."""

    index: int
    base: Float32Array
    state: tuple[Float32Array, ...]


def decide(
    contributions: Sequence[WeightedContribution], *, rule: Rule, layout: ParameterLayout
) -> list[WeightedContribution]:
    """Return the contributions with the weights that `rule` gives them, in member order.

    Gram rules and mixing read every fragment once. Coordinate rules give everybody one vote, and
    with mixing also the neighbours that stand in for each.

    Args:
        contributions: With their clip factors, and the weights that tokens and cap gave them.
        rule: Of the federation.
        layout: Of the vector.

    Raises:
        ConfigError: The rule cannot hold with so few contributions.
        RejectedError: A contribution does not decode, or is not finite.
    """
    ordered = in_member_order(contributions)
    rule.require(len(ordered))
    if not rule.needs_gram:
        if not rule.is_one_vote_each:
            return ordered
        return [replace(part, weight=1 / len(ordered)) for part in ordered]
    gram = gram_of(ordered, layout)
    given_K = np.array([part.weight for part in ordered])
    if not rule.mixing:
        return _weighted(ordered, rule.weights(gram, given_K))
    shares_KK = mixing_shares(gram, byzantine=rule.byzantine)
    if not rule.is_by_coordinate:
        return _weighted(ordered, rule.weights(gram.mixed(shares_KK), given_K) @ shares_KK)
    members = [part.member_id for part in ordered]
    return [
        replace(
            part,
            weight=1 / len(ordered),
            neighbours=tuple(members[k] for k in np.flatnonzero(shares_K)),
        )
        for part, shares_K in zip(ordered, shares_KK, strict=True)
    ]


def aggregate(
    contributions: Sequence[WeightedContribution],
    *,
    rule: Rule,
    layout: ParameterLayout,
    indices: Iterable[int] | None = None,
) -> Iterator[Float32Array]:
    """Yield the aggregate's fragments, by the weights that are recorded.

    The array is the same one every time and is overwritten by the next.

    Args:
        contributions: At least one, as `decide` returned them or as a manifest records them.
        rule: That `decide` was called with.
        layout: Of the vector.
        indices: Of the fragments, in this order; None: all, in index order.

    Raises:
        ConfigError: The rule cannot hold with so few contributions.
        RejectedError: A recorded fragment does not decode.
    """
    rule.require(len(contributions))
    merge = _merge(contributions, rule, layout)
    total = np.empty(longest_fragment(layout), np.float32)
    for index in range(layout.fragments) if indices is None else indices:
        start, stop = layout.bounds(index)
        merge(index, total[: stop - start])
        yield total[: stop - start]


def outer_step(
    base: ReadBase,
    state: ReadState | None,
    contributions: Sequence[WeightedContribution],
    *,
    layout: ParameterLayout,
    optimizer: OuterOptimizer,
    rule: Rule = MEAN,
    indices: Sequence[int] | None = None,
) -> Iterator[UpdatedFragment]:
    """Yield the updated fragments.

    Args:
        base: Reads the base checkpoint.
        state: Reads the optimizer's state before this round; None before the first one.
        contributions: At least one, as `decide` returned them or as a manifest records them.
        layout: Of the vector.
        optimizer: The outer optimizer.
        rule: That `decide` was called with.
        indices: Of the fragments, in this order; None: all, in index order.

    Raises:
        ConfigError: The rule cannot hold with so few contributions.
        RejectedError: A recorded fragment does not decode.
    """
    if indices is None:
        indices = range(layout.fragments)
    totals = aggregate(contributions, rule=rule, layout=layout, indices=indices)
    for index, total in zip(indices, totals, strict=True):
        new_base = base(index)
        new_state = optimizer.initial_state(total.size) if state is None else state(index)
        for block in column_blocks(total.size, rows=2 + optimizer.state_vectors):
            optimizer.step(new_base[block], total[block], [vector[block] for vector in new_state])
        yield UpdatedFragment(index=index, base=new_base, state=new_state)


def in_memory(vector: Float32Array, layout: ParameterLayout) -> ReadBase:
    """Return what reads the fragments of a vector that is in memory; it is not changed."""
    return lambda index: np.array(vector[slice(*layout.bounds(index))], np.float32)


def _merge(
    contributions: Sequence[WeightedContribution], rule: Rule, layout: ParameterLayout
) -> Merge:
    if rule.is_by_coordinate:
        return TrimmedMean(contributions, layout, trim=rule.trim(len(contributions)))
    if rule.merge == "rda":
        return RdaMerge(contributions, layout)
    return WeightedMean(contributions, layout)


def _weighted(
    contributions: Sequence[WeightedContribution], weights_K: Float64Array
) -> list[WeightedContribution]:
    """Return contributions with new weights, inside [0, 1] whatever the last digit says."""
    return [
        replace(part, weight=min(max(float(weight), 0.0), 1.0))
        for part, weight in zip(contributions, weights_K, strict=True)
    ]
