"""Each member's share in the average: token weights under an influence cap."""

from collections.abc import Mapping

from tapestry.errors import ConfigError


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
) -> dict[str, float]:
    """Return weights that sum to 1, proportional to tokens**gamma, none above `cap`.

    A member above the cap is set to it, and what it loses goes to the others in proportion;
    repeated until nobody is above. Members are visited in the order of their ids, in float64,
    so the result is the same on every machine.

    A member with a discount has its share and its cap multiplied by it. So what late ones lose goes
    to those below their caps; where nobody is, it goes to none, and the sum stays below 1: nobody
    is amplified because others are late, and who is late alone is not either.

    Args:
        tokens: Tokens seen by the inner steps, by member id; each at least 1.
        gamma: 0 gives equal weights, 1 proportional ones.
        cap: Upper bound of a weight, in (0, 1].
        discounts: Factors in (0, 1] by member id; 1 where none is named.

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
    capped: set[str] = set()
    while True:
        free = sum(shares[member] for member in members if member not in capped)
        room = 1 - cap * sum(factors[member] for member in members if member in capped)
        weights = {
            member: caps[member] if member in capped or free == 0 else shares[member] / free * room
            for member in members
        }
        above = {member for member in members if weights[member] > caps[member]} - capped
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
