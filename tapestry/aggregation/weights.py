"""Each member's share in the average: token weights under an influence cap."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

from tapestry.errors import ConfigError

_Unit = TypeVar("_Unit", bound=Hashable)
"""A member or a group."""


def default_cap(members: int) -> float:
    """Return the influence cap for `members` contributions: a quarter, or an equal share."""
    return max(1 / members, 0.25)


def staleness_discount(staleness: int, *, discount: float) -> float:
    """Return the factor for a contribution that is `staleness` rounds late (T10): 1 in time."""
    return 1 / (1 + discount * staleness)


def token_weights(
    tokens: Mapping[str, int],
    *,
    gamma: float,
    cap: float,
    discounts: Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    group_cap: float = 0.0,
) -> dict[str, float]:
    """Return weights that sum to 1, proportional to tokens**gamma, none above `cap`.

    A member above the cap is set to it, and what it loses goes to the others in proportion;
    repeated until nobody is above. Members are visited in the order of their ids, in float64,
    so the result is the same on every machine.

    A member with a discount has its share and its cap multiplied by it. So what late ones lose goes
    to those below their caps; where nobody is, it goes to none, and the sum stays below 1: nobody
    is amplified because others are late, and who is late alone is not either.

    Members of a group share what the group may have, first among the groups and those that stand
    alone, then within each. Where the groups' caps leave a part of the whole to nobody, the weights
    sum to less than 1: the step is shorter, and no cap is broken.

    Args:
        tokens: Tokens seen by the inner steps, by member id; each at least 1.
        gamma: 0 gives equal weights, 1 proportional ones.
        cap: Upper bound of a weight, in (0, 1].
        discounts: Factors in (0, 1] by member id; 1 where none is named.
        groups: Group by member id, of those that are in one.
        group_cap: Upper bound of a group's weights together, in (0, 1]; 0: none.

    Raises:
        ConfigError: The cap cannot hold: fewer than 1 / cap members. It is refused and never
            renormalised away.
    """
    members = sorted(tokens)
    if cap * len(members) < 1 - 1e-9:
        raise ConfigError(
            f"influence_cap = {cap:g} cannot hold with {len(members)} contributions, whose weights "
            f"sum to 1: raise quorum to {_fewest(cap)} or influence_cap to {1 / len(members):.4g}"
        )
    factors = {member: (discounts or {}).get(member, 1.0) for member in members}
    shares = {member: float(tokens[member]) ** gamma * factors[member] for member in members}
    caps = {member: cap * factors[member] for member in members}
    if not group_cap or not groups:
        return _shared_out(shares, caps, 1.0)
    units: dict[tuple[bool, str], list[str]] = {}
    for member in members:
        group = groups.get(member)
        units.setdefault((group is not None, group or member), []).append(member)
    unit_shares = {unit: sum(shares[m] for m in inside) for unit, inside in units.items()}
    unit_caps = {
        unit: min(sum(caps[m] for m in inside), group_cap if unit[0] else cap)
        for unit, inside in units.items()
    }
    unit_weights = _shared_out(unit_shares, unit_caps, min(1.0, sum(unit_caps.values())))
    weights: dict[str, float] = {}
    for unit, inside in units.items():
        within = {member: shares[member] for member in inside}
        weights |= _shared_out(within, caps, unit_weights[unit])
    return {member: weights[member] for member in members}


def _shared_out(
    shares: Mapping[_Unit, float], caps: Mapping[_Unit, float], total: float
) -> dict[_Unit, float]:
    """Return weights that sum to `total`, proportional to `shares`, none above its cap."""
    capped: set[_Unit] = set()
    while True:
        free = sum(shares[unit] for unit in shares if unit not in capped)
        room = total - sum(caps[unit] for unit in shares if unit in capped)
        weights = {
            unit: caps[unit] if unit in capped or free == 0 else shares[unit] / free * room
            for unit in shares
        }
        above = {unit for unit in shares if weights[unit] > caps[unit]} - capped
        if not above:
            return weights
        capped |= above


def _fewest(cap: float) -> int:
    """Return the smallest number of members for which `cap` can hold."""
    members = 1
    while cap * members < 1 - 1e-9:
        members += 1
    return members


def clip_factors(norms: Mapping[str, float], *, clip: float) -> dict[str, float]:
    """Return factors that bring each norm down to `clip` times the median norm.

    Limits what one very large contribution can do, at the price of a little bias (T7 of the
    project's reference). `clip` = 0 turns it off.

    Args:
        norms: Euclidean norms of the decoded pseudo-gradients, by member id.
        clip: Multiple of the median, usually 1 to 1.5.
    """
    if clip == 0:
        return dict.fromkeys(sorted(norms), 1.0)
    ordered = sorted(norms.values())
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    limit = clip * median
    return {m: 1.0 if norms[m] <= limit else limit / norms[m] for m in sorted(norms)}
