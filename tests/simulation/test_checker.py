"""The checker is worth something: federations with one fault in the product are found out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import TapestryError
from tapestry_coordinator import desk as desk_module
from tapestry_coordinator import rounds
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import ClosedRound
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import Arrived, Effect, Published, RoundState
from tests.coordinator.small import Small
from tests.simulation import plants
from tests.simulation.checker import differences, violations
from tests.simulation.history import History
from tests.simulation.plants import origin
from tests.simulation.runs import troubled

HISTORIES = 25
LAST = 3
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


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


def told_before_recorded(patch: Patch) -> None:
    """A checkpoint shows before the database has taken it, and then is another."""
    publish = Desk.publish

    def hasty(self: Desk, envelope: Any) -> None:
        manifest = Manifest.parsed(envelope.payload, what="manifest")
        other = manifest.model_copy(update={"created_at": manifest.created_at + 1})
        publish(self, envelope)
        self._manifest = other.signed(self.key)

    patch.setattr(Desk, "publish", hasty)


def log_is_cut(patch: Patch) -> None:
    """A new process drops the newest event."""
    begin = Desk.__init__

    def cutting(self: Desk, *args: Any, **named: Any) -> None:
        plants._database()[1].execute(  # noqa: SLF001 - the fault
            "DELETE FROM events WHERE id = (SELECT max(id) FROM events WHERE kind = 'declined')"
        )
        begin(self, *args, **named)

    patch.setattr(Desk, "__init__", cutting)


def takes_anything(patch: Patch) -> None:
    """Claims are not compared with the plan."""
    patch.setattr(desk_module, "require_fit", lambda _contribution, _plan: None)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "invariant"),
    [
        (event_twice, "I3"),
        (receipt_for_nothing, "I1"),
        (contribution_left_out, "I1"),
        (contribution_twice, "I1"),
        (another_checkpoint_each_time, "I2"),
        (checkpoint_not_recorded, "I3"),
        (told_before_recorded, "I3"),
        (log_is_cut, "I3"),
        (takes_anything, "I1"),
        (never_plans_again, "L"),
        (waits_for_everybody, "L"),
    ],
)
def test_a_fault_is_found(
    fault: Callable[[Patch], None], invariant: str, monkeypatch: Patch
) -> None:
    fault(monkeypatch)
    found: list[str] = []
    for seed in range(HISTORIES):
        try:
            history = troubled(seed).play()
        except (TapestryError, ValueError, KeyError) as error:  # the faulty product may fail
            found.append(type(error).__name__)
            continue
        found += [violation.invariant for violation in violations(history)]
        if invariant in found:
            return
    pytest.fail(f"{fault.__doc__} In {HISTORIES} histories the checker saw {sorted(set(found))}")


@pytest.fixture(scope="module")
def sound() -> History:
    """A history with publications and crashes, in which nothing is wrong."""
    logging.disable(logging.CRITICAL)
    history = next(
        history
        for history in (troubled(seed).play() for seed in range(20))
        if len(history.logs) > 1 and len(history.acknowledged) > 2
    )
    logging.disable(logging.NOTSET)
    assert not violations(history)
    return history


def invariants(history: History) -> set[str]:
    return {violation.invariant for violation in violations(history)}


def without(rows: Sequence[Any], index: int) -> tuple[Any, ...]:
    return tuple(row for i, row in enumerate(rows) if i != index)


def test_a_lost_row_of_any_kind_is_noticed(sound: History) -> None:
    records = sound.records
    for name in ("contributions", "manifests", "plans"):
        less = replace(records, **{name: without(getattr(records, name), 0)})
        assert invariants(replace(sound, records=less)), name
    logs = [*sound.logs, without(records.events, 0)]
    assert invariants(replace(sound, logs=logs)) == {"I3"}


def test_two_stories_are_noticed(sound: History) -> None:
    key = Small(CoordinatorHome(origin())).key
    told = next(t for t in sound.told if t.plan is not None)
    manifest = Manifest.parsed(told.manifest.payload, what="manifest")
    other = manifest.model_copy(update={"created_at": manifest.created_at + 1}).signed(key)
    assert payload_digest(other) != payload_digest(told.manifest)
    assert invariants(replace(sound, told=[replace(told, manifest=other)])) == {"I3"}


def test_runs_that_differ_in_substance_are_told_apart(sound: History) -> None:
    lineage = sound.records.lineage
    manifest = Manifest.parsed(lineage[-1].payload, what="manifest")
    key = Small(CoordinatorHome(origin())).key
    later = manifest.model_copy(update={"created_at": manifest.created_at + 1}).signed(key)
    assert not differences([*lineage[:-1], later], lineage), "times may differ"
    other = manifest.model_copy(update={"vector_root": "0" * 64}).signed(key)
    assert [v.invariant for v in differences([*lineage[:-1], other], lineage)] == ["I6"]
