"""Each member's share in the average: token weights under an influence cap."""

from collections.abc import Mapping

from tapestry.errors import ConfigError


def default_cap(members: int) -> float:
    """Return the influence cap for `members` contributions: a quarter, or an equal share."""
    return max(1 / members, 0.25)


def token_weights(tokens: Mapping[str, int], *, gamma: float, cap: float) -> dict[str, float]:
    """Return weights that sum to 1, proportional to tokens**gamma, none above `cap`.

    A member above the cap is set to it, and what it loses goes to the others in proportion;
    repeated until nobody is above. Members are visited in the order of their ids, in float64,
    so the result is the same on every machine.

    Args:
        tokens: Tokens seen by the inner steps, by member id; each at least 1.
        gamma: 0 gives equal weights, 1 proportional ones.
        cap: Upper bound of a weight, in (0, 1].

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
    shares = {member: float(tokens[member]) ** gamma for member in members}
    capped: set[str] = set()
    while True:
        free = sum(shares[member] for member in members if member not in capped)
        room = 1 - cap * len(capped)
        weights = {
            member: cap if member in capped or free == 0 else shares[member] / free * room
            for member in members
        }
        above = {member for member in members if weights[member] > cap} - capped
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
