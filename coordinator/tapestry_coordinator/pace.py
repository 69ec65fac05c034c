"""How members of different speed go together: equal time instead of equal steps, and no lockstep.

Pure functions of what the registry remembers; what they decide stands in the signed plan.
"""

from collections.abc import Mapping
from dataclasses import replace

from tapestry.checkpoints.deciding import buffer_of
from tapestry.checkpoints.policy import PacePolicy
from tapestry_coordinator.events import RoundRules

MOST_STEPS = 1_000_000


def steps_for(speeds: Mapping[str, float], pace: PacePolicy, *, step_tokens: int) -> dict[str, int]:
    """Return how many inner steps each member takes in `pace.round_seconds` (T9, time-based).

    Args:
        speeds: Tokens per second by member id; 0 where unknown, which gets no entry.
        pace: Bounds: `min_steps`, and `max_ratio` times the fewest of another member.
        step_tokens: Tokens of an inner step.
    """
    if pace.round_seconds == 0:
        return {}
    wanted = {
        member: max(pace.min_steps, int(speed * pace.round_seconds / step_tokens))
        for member, speed in sorted(speeds.items())
        if speed > 0
    }
    most = min(min(wanted.values(), default=1) * pace.max_ratio, MOST_STEPS)
    return {member: min(steps, int(most)) for member, steps in wanted.items()}


def paced(rules: RoundRules, pace: PacePolicy, *, active: int) -> RoundRules:
    """Return the rules of a round in the federation's mode.

    An asynchronous round closes after `buffer` arrivals, at once, whatever round they began in; at
    its deadline with the quorum, as others do.

    Args:
        rules: As configured.
        pace: The federation's.
        active: Members that are waited for.
    """
    if pace.mode == "synchronous":
        return rules
    buffer = max(rules.quorum, buffer_of(pace, active))
    return replace(rules, buffer=buffer, grace_seconds=0.0, is_asynchronous=True)


def speed_of(tokens: int, *, seconds: float, at_most_seconds: float) -> float:
    """Return tokens per second as a member declares them, 0 if it declares no time.

    Args:
        tokens: Of its inner steps.
        seconds: That they took, as declared.
        at_most_seconds: Between the plan and the contribution: longer they cannot have taken, and
            whoever says so would make everybody's rounds short.
    """
    if seconds <= 0 or at_most_seconds <= 0:
        return 0.0
    return tokens / min(seconds, at_most_seconds)
