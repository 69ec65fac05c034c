"""Faults in the product, one by one, each of which the checker has to find out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tapestry.checkpoints.manifest import Manifest
from tapestry.ledger.entries import CONTRIBUTION, Entry
from tapestry_coordinator import inbox, rounds, standing
from tapestry_coordinator.announcing import Announcement
from tapestry_coordinator.clock import SteadyClock
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.events import Arrived, Published, Ruled
from tapestry_coordinator.ledgering import Ledger, Seal
from tapestry_coordinator.planning import Planner
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roll import Roll
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tests.simulation import plants
from tests.simulation.modelled_registry import ModelledRegistry

LAST = 3
Patch = pytest.MonkeyPatch


def event_twice(patch: Patch) -> None:
    """Events are stored twice."""
    record = Registry.record_event

    def twice(self: Registry, number: int, event: Any, *, now: float, **rest: Any) -> None:
        record(self, number, event, now=now, **rest)
        record(self, number, event, now=now)

    patch.setattr(Registry, "record_event", twice)


def receipt_for_nothing(patch: Patch) -> None:
    """Every second contribution is acknowledged and not stored."""
    record = Registry.record_event
    count = [0]

    def forgetful(self: Registry, number: int, event: Any, **rest: Any) -> None:
        count[0] += isinstance(event, Arrived)
        if not isinstance(event, Arrived) or count[0] % 2:
            record(self, number, event, **rest)
        else:
            rest["contribution"].receive(0)

    patch.setattr(Registry, "record_event", forgetful)


def contribution_left_out(patch: Patch) -> None:
    """The first contribution of a round is not aggregated."""
    recorded = ClosedRound.recorded

    def incomplete(registry: Registry, state: RoundState) -> ClosedRound:
        closed = recorded(registry, state)
        return replace(closed, contributions=closed.contributions[1:])

    patch.setattr(ClosedRound, "recorded", incomplete)


def contribution_twice(patch: Patch) -> None:
    """The first contribution of a round counts twice."""
    recorded = ClosedRound.recorded

    def generous(registry: Registry, state: RoundState) -> ClosedRound:
        closed = recorded(registry, state)
        return replace(closed, contributions=[*closed.contributions, closed.contributions[0]])

    patch.setattr(ClosedRound, "recorded", generous)


def another_checkpoint_each_time(patch: Patch) -> None:
    """A checkpoint depends on when it is computed."""
    modelled, count = plants.modelled, [0]

    def moody(closed: ClosedRound) -> Manifest:
        count[0] += 1
        return modelled(closed).model_copy(update={"created_at": closed.closed_at + count[0]})

    patch.setattr(plants, "modelled", moody)


def checkpoint_not_recorded(patch: Patch) -> None:
    """A checkpoint is announced, and its manifest is not in the database."""
    record = Registry.record_event

    def forgetful(self: Registry, number: int, event: Any, **rest: Any) -> None:
        if isinstance(event, Published) and number == LAST:
            rest["manifest"] = None
        record(self, number, event, **rest)

    patch.setattr(Registry, "record_event", forgetful)


def entry_of_nothing(patch: Patch) -> None:
    """An event that is not recorded leaves its entry in the ledger."""
    append = Ledger.append

    def repeated(self: Ledger, connection: Any, entry: Entry) -> int:
        if entry.kind == CONTRIBUTION and entry.round == LAST:
            append(self, connection, entry)
        return append(self, connection, entry)

    patch.setattr(Ledger, "append", repeated)


def checkpoint_without_head(patch: Patch) -> None:
    """Every third checkpoint is published under no head."""
    seal, count = Ledger.seal, [0]

    def lazy(self: Ledger, connection: Any, sign: Seal) -> None:
        count[0] += 1
        if count[0] % 3:
            seal(self, connection, sign)

    patch.setattr(Ledger, "seal", lazy)


def told_before_recorded(patch: Patch) -> None:
    """A checkpoint shows before the database has taken it, and then is another."""
    publish = Desk.publish

    def hasty(self: Desk, envelope: Any) -> None:
        manifest = Manifest.parsed(envelope.payload, what="manifest")
        other = manifest.model_copy(update={"created_at": manifest.created_at + 1})
        publish(self, envelope)
        self._standing.manifest = other.signed(self.key)

    patch.setattr(Desk, "publish", hasty)


def log_is_cut(patch: Patch) -> None:
    """A new process drops the newest event."""
    begin = Desk.__init__

    def cutting(self: Desk, *args: Any, **named: Any) -> None:
        registry = args[2]
        registry.database.execute(
            "DELETE FROM events WHERE id = (SELECT max(id) FROM events WHERE kind = 'declined')"
        )
        registry.forget()
        begin(self, *args, **named)

    patch.setattr(Desk, "__init__", cutting)


def takes_anything(patch: Patch) -> None:
    """Claims are not compared with the plan."""
    patch.setattr(inbox, "require_fit", lambda _contribution, _plan: None)


def never_plans_again(patch: Patch) -> None:
    """A round that misses its deadline waits for ever."""

    def patient(
        state: RoundState, effects: list[Effect], _event: Any, _now: float
    ) -> tuple[RoundState, list[Effect]]:
        return state, effects

    patch.setattr(rounds, "_replan_if_overdue", patient)


def waits_for_everybody(patch: Patch) -> None:
    """One member that does not answer holds a round beyond its deadline."""
    close = rounds._close_if_due  # noqa: SLF001 - the fault

    def waiting(state: RoundState, now: float, *, changed: bool) -> tuple[RoundState, list[Effect]]:
        answered = {*state.arrived, *state.declined}
        if set(state.cohort) <= answered or now > state.deadline + 30:
            return close(state, now, changed=changed)
        return state, []

    patch.setattr(rounds, "_close_if_due", waiting)


# Lateness


def late_ones_lost(patch: Patch) -> None:
    """A late contribution has a receipt, and no round uses it."""
    read = ModelledRegistry.contributions

    def mean(self: ModelledRegistry, number: int) -> list[StoredContribution]:
        return [c for c in read(self, number) if not c.staleness]

    patch.setattr(ModelledRegistry, "contributions", mean)


def late_ones_in_time(patch: Patch) -> None:
    """A late contribution is taken for one in time."""
    recorded = ClosedRound.recorded

    def kind(registry: Registry, state: RoundState) -> ClosedRound:
        closed = recorded(registry, state)
        return replace(
            closed, contributions=[replace(c, staleness=0) for c in closed.contributions]
        )

    patch.setattr(ClosedRound, "recorded", kind)


def however_late(patch: Patch) -> None:
    """Late contributions are taken whatever their plan says."""
    known = rounds.staleness_of

    def patient(state: RoundState, member_id: str, *, answers: int, most: int) -> int:
        return known(state, member_id, answers=answers, most=most + 9)

    patch.setattr(standing, "staleness_of", patient)


def late_at_full_weight(patch: Patch) -> None:
    """Late contributions have no discount."""
    patch.setattr(plants, "staleness_discount", lambda _staleness, **_rest: 1.0)


# The gate


def candidate_for_a_checkpoint(patch: Patch) -> None:
    """Members hear of a candidate as if it were published."""
    known = Desk.announcement

    def hasty(self: Desk, *args: Any, **named: Any) -> Announcement | None:
        told = known(self, *args, **named)
        if told is None or told.candidate is None:
            return told
        return replace(told, manifest=told.candidate, candidate=None)

    patch.setattr(Desk, "announcement", hasty)


def deaf_gate(patch: Patch) -> None:
    """Dissent changes nothing."""
    judge = rounds._judge_if_due  # noqa: SLF001 - the fault

    def deaf(state: RoundState, now: float) -> tuple[RoundState, list[Effect]]:
        after, effects = judge(state, now)
        if after.phase is Phase.MEASURING:
            return after, effects
        return replace(after, phase=Phase.RELEASING, reverted=""), [Effect.RELEASE]

    patch.setattr(rounds, "_judge_if_due", deaf)


def held_for_a_moment(patch: Patch) -> None:
    """What is held for the operator is published by itself."""
    judge = rounds._judge_if_due  # noqa: SLF001 - the fault

    def hasty(state: RoundState, now: float) -> tuple[RoundState, list[Effect]]:
        after, effects = judge(state, now)
        if after.phase is not Phase.HELD:
            return after, effects
        return replace(after, phase=Phase.RELEASING), [Effect.RELEASE]

    patch.setattr(rounds, "_judge_if_due", hasty)


def ruling_turned_round(patch: Patch) -> None:
    """What the operator releases is reverted, and the other way round."""

    def contrary(self: Desk) -> None:
        ruling = self.registry.ruling(self.state.number)
        if ruling is not None and self.state.phase in (Phase.MEASURING, Phase.HELD):
            self._standing.advance(Ruled(is_released=not ruling.is_released, reason="the contrary"))

    patch.setattr(Desk, "_take_ruling", contrary)


def reverted_to_something_else(patch: Patch) -> None:
    """A reverted round has another vector than its parent."""
    known = plants.reverted_manifest

    def moved(closed: ClosedRound, base: Manifest, files: Sequence[Any]) -> Manifest:
        return known(closed, base, files).model_copy(update={"vector_root": "0" * 64})

    patch.setattr(plants, "reverted_manifest", moved)


def waits_for_every_measurement(patch: Patch) -> None:
    """A member that says nothing holds a candidate for ever."""
    judge = rounds._judge_if_due  # noqa: SLF001 - the fault

    def patient(state: RoundState, _now: float) -> tuple[RoundState, list[Effect]]:
        return judge(state, 0.0)

    patch.setattr(rounds, "_judge_if_due", patient)


# The operator


def pause_overheard(patch: Patch) -> None:
    """Rounds open though the operator has paused them."""
    patch.setattr(Desk, "_note_pause", lambda _self, _pause: None)


def policy_of_the_founders(patch: Patch) -> None:
    """A policy that is agreed upon later comes into force at the next start only."""
    patch.setattr(Planner, "take_newest_policy", lambda _self: False)


def revoked_and_counted(patch: Patch) -> None:
    """What a member handed in before it was revoked counts."""
    let_go = Roll._let_go  # noqa: SLF001 - the fault

    def forgiving(self: Roll, member_id: str, *, is_standing: bool) -> None:
        if member_id not in self._standing.state.arrived:
            let_go(self, member_id, is_standing=is_standing)

    patch.setattr(Roll, "_let_go", forgiving)


def others_left_out_too(patch: Patch) -> None:
    """With a revoked member everybody's contribution is left out but a quorum's."""
    leave = rounds._leave  # noqa: SLF001 - the fault

    def unjust(state: RoundState, event: Any, now: float) -> tuple[RoundState, list[Effect]]:
        for member_id in sorted(state.arrived)[1:]:
            state = rounds._exclude(state, replace(event, member_id=member_id, tokens=0))  # noqa: SLF001
        return leave(state, event, now)

    patch.setattr(rounds, "_leave", unjust)


# Clocks


def deadlines_by_the_calendar(patch: Patch) -> None:
    """Rounds go by a clock that anybody can set."""

    def begin(self: Any, calendar: Callable[[], float], *_args: Any, **_named: Any) -> None:
        self._difference, self._monotonic = 0.0, calendar

    patch.setattr(SteadyClock, "__init__", begin)


def clock_set_back_by_a_start(patch: Patch) -> None:
    """A process that starts under a calendar that was set back takes time back."""
    known = SteadyClock.__init__

    def forgetful(self: Any, calendar: Any, monotonic: Any, **_named: Any) -> None:
        known(self, calendar, monotonic)

    patch.setattr(SteadyClock, "__init__", forgetful)


FAULTS: Sequence[tuple[Callable[[Patch], None], str]] = [
    (event_twice, "I3"),
    (receipt_for_nothing, "I1"),
    (contribution_left_out, "I1"),
    (contribution_twice, "I1"),
    (another_checkpoint_each_time, "I2"),
    (checkpoint_not_recorded, "I3"),
    (entry_of_nothing, "I3"),
    (checkpoint_without_head, "I3"),
    (told_before_recorded, "I3"),
    (log_is_cut, "I3"),
    (takes_anything, "I1"),
    (never_plans_again, "L"),
    (waits_for_everybody, "L"),
    (late_ones_lost, "I1"),
    (late_ones_in_time, "A"),
    (however_late, "A"),
    (late_at_full_weight, "A"),
    (candidate_for_a_checkpoint, "I3"),
    (deaf_gate, "A"),
    (held_for_a_moment, "A"),
    (ruling_turned_round, "A"),
    (reverted_to_something_else, "A"),
    (waits_for_every_measurement, "L"),
    (pause_overheard, "A"),
    (policy_of_the_founders, "A"),
    (revoked_and_counted, "A"),
    (others_left_out_too, "A"),
    (deadlines_by_the_calendar, "A"),
    (clock_set_back_by_a_start, "A"),
]
"""Each with the invariant that does not hold with it."""

IN_THE_DATABASE = {
    event_twice,
    receipt_for_nothing,
    checkpoint_not_recorded,
    entry_of_nothing,
    checkpoint_without_head,
    log_is_cut,
}
"""Those of the registry itself, which only show where it is not modelled."""
