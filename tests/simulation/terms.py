"""What a federation of a history has agreed upon: drawn by its seed, beside what goes wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tapestry.checkpoints.policy import FederationPolicy
from tapestry_coordinator.settings import RoundsSettings
from tests.coordinator.small import changed_policy
from tests.simulation.world import World

ROUNDS = RoundsSettings(
    total=3, quorum=2, gather_seconds=10.0, grace_seconds=20.0, deadline_seconds=90.0
)
MEASURING_SECONDS = 40.0
RULING_SECONDS = 60.0
"""That the operator takes to decide about a candidate, at most."""

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Terms:
    """Policy and settings, and what becomes of the policy in the middle."""

    rounds: RoundsSettings = ROUNDS
    tables: Tables = field(default_factory=dict)
    """Of the policy, where it is not the founders'."""
    later: Tables | None = None
    """Of the policy that the federation agrees upon in the middle."""
    is_measured: bool = False
    """Whether members measure checkpoints."""
    fails_over: bool = False
    """Whether another machine goes on after a crash, with what is in database and store."""

    def policy(self, founders: FederationPolicy) -> FederationPolicy:
        """Return the policy at the beginning."""
        return changed_policy(founders, **self.tables)

    def later_policy(self, founders: FederationPolicy) -> FederationPolicy | None:
        """Return the one that follows it; None if it stays."""
        return None if self.later is None else changed_policy(founders, **self.later)

    @property
    def slack_seconds(self) -> float:
        """What a round may take when nothing goes wrong, but for its deadline."""
        rounds = self.rounds
        gate = MEASURING_SECONDS + RULING_SECONDS + 40.0 if self.is_measured else 0.0
        return rounds.gather_seconds + 2 * rounds.deadline_seconds + 60.0 + gate


def drawn(world: World) -> Terms:
    """Return terms as a seed has them: half of the federations are of the plainest kind."""
    if world.chance(0.4):
        return Terms(is_measured=world.chance(0.2), fails_over=world.chance(0.2))
    tables, later = _tables(world), None
    if world.chance(0.4):
        later = _tables(world)
    gates = [one.get("no_harm", {}).get("action") for one in (tables, later or {})]
    is_gated = any(action in {"hold", "revert"} for action in gates)
    return Terms(
        tables=tables,
        later=later,
        is_measured=is_gated or world.chance(0.2),
        fails_over=world.chance(0.3),
    )


def _tables(world: World) -> Tables:
    choose = world.random.choice
    mode = choose(("synchronous", "synchronous", "asynchronous"))
    is_out_of_step = mode == "asynchronous"
    return {
        "lateness": {
            "max_staleness": choose((1, 2, 4)) if is_out_of_step else choose((0, 1, 1, 2, 4)),
            "discount": choose((0.0, 0.25, 1.0)),
        },
        "pace": {
            "mode": mode,
            "round_seconds": choose((0.0, 0.0, 15.0)),
            "min_steps": 2,
            "max_ratio": choose((2.0, 8.0)),
        },
        "no_harm": {
            "action": choose(("publish", "hold", "revert", "revert")),
            "evaluation_seconds": MEASURING_SECONDS,
            "max_worse": 0.02,
        },
        "activity": {"inactive_after": choose((0, 1, 3))},
        "aggregation": {
            "optimizer": choose(("nesterov", "delayed-nesterov")) if is_out_of_step else "nesterov"
        },
    }
