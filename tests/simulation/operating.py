"""What people do to a federation in the middle of its rounds, and clocks that are set."""

from dataclasses import dataclass, field
from functools import partial

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.errors import ConfigError
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.round_state import Phase
from tests.simulation.coordinator import Coordinator
from tests.simulation.members import Member
from tests.simulation.modelled_registry import ModelledOperator, ModelledRegistry
from tests.simulation.terms import RULING_SECONDS

_HOUR = 3600.0
_LOOK_SECONDS = 15.0


@dataclass
class Operating:
    """The operator of a history, at work beside the coordinator's process."""

    coordinator: Coordinator
    _paused_at: float | None = None
    _ruled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.world, self.plant = self.coordinator.world, self.coordinator.plant
        self.history = self.coordinator.history
        registry = self.plant.registry
        kind = ModelledOperator if isinstance(registry, ModelledRegistry) else Operator
        self._operator = kind(
            self.plant.small.home, registry, who="operator", clock=self.world.calendar
        )

    # Pauses

    def pause(self) -> None:
        """Let no further round open."""
        if self._paused_at is None:
            self._operator.pause("maintenance")
            self._paused_at = self.world.now
            self.plant.registry.forget()

    def resume(self) -> None:
        """Let rounds open again."""
        if self._paused_at is not None:
            self._operator.resume()
            self.history.pauses.append((self._paused_at, self.world.now))
            self._paused_at = None
            self.plant.registry.forget()

    # Policy and members

    def adopt(self, policy: FederationPolicy) -> None:
        """Let the next round be under another policy."""
        self.plant.small.home.save_policy(policy)
        self.plant.registry.adopt_policy(policy, now=self.world.calendar())
        self.history.adopted.append((self.world.now, policy.digest))

    def revoke(self, member: Member) -> None:
        """End a membership."""
        self.plant.registry.revoke(member.member_id, now=self.world.calendar())
        self.history.departures.append((self.world.now, member.member_id))

    # Candidates

    def look(self) -> None:
        """Decide about a candidate that is held, after a while, or sometimes before that."""
        process = self.coordinator.process
        if process is not None:
            state = process.desk.state
            is_early = state.phase is Phase.MEASURING and self.world.chance(0.05)
            if (state.phase is Phase.HELD or is_early) and state.number not in self._ruled:
                self._ruled.add(state.number)
                wait = self.world.between(0.0, RULING_SECONDS - _LOOK_SECONDS)
                self.world.after(wait, partial(self._rule, state.number))
        self.world.after(_LOOK_SECONDS, self.look)

    def _rule(self, number: int) -> None:
        is_released = self.world.chance(0.5)
        try:
            self._operator.rule(number, is_released=is_released, reason="decided by the operator")
        except ConfigError:
            self._ruled.discard(number)  # meanwhile it was published

    # What goes on by itself

    def plan(self, members: list[Member], later: FederationPolicy | None, *, until: float) -> None:
        """Schedule what happens until things calm down."""
        world = self.world
        for _ in range(world.random.randint(0, 2)):
            world.after(world.between(0.0, until), self._crash)
        for member in members:
            if member.kind == "forgetful" or world.chance(0.2):
                die = partial(member.crash, loses_spool=world.chance(0.5))
                world.after(world.between(0.0, until), die)
            is_last = len(members) > 2 and member is members[-1]
            if is_last and world.chance(0.4):
                at = world.between(0.0, until * 0.6)
                world.after(at, partial(self.revoke, member))
                world.after(at + world.between(1.0, until * 0.4), member.come_back)
        if world.chance(0.2):
            at = world.between(0.0, until * 0.8)
            world.after(at, self.pause)
            world.after(at + world.between(1.0, until - at), self.resume)
        if world.chance(0.3):
            for _ in range(world.random.randint(1, 3)):
                ahead = world.random.choice((-_HOUR, 0.0, _HOUR))
                world.after(
                    world.between(0.0, until), partial(world.set_calendar, ahead_seconds=ahead)
                )
        if later is not None:
            world.after(world.between(0.0, until), partial(self.adopt, later))

    def _crash(self) -> None:
        self.coordinator.crashes["between"] = self.coordinator.crashes.get("between", 0) + 1
        self.coordinator.die()
