"""Members of different speed over real connections: late, absent, measured, out of step."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapestry.checkpoints.manifest import Manifest, RoundRecord
from tapestry.checkpoints.statements import Receipt, RoundPlan
from tapestry.errors import RejectedError, TapestryError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.wire.statuses import errors_from_status
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.settings import RoundsSettings
from tapestry_coordinator.status import activity_of
from tests.coordinator.small import found_small
from tests.wire.serving import Coordinator, Line

ROUNDS = RoundsSettings(quorum=2, gather_seconds=10.0, grace_seconds=30.0, deadline_seconds=3600.0)
PLAIN = {"optimizer": "sgd", "learning_rate": 1.0, "clip": 0.0}
LATE = {"lateness": {"max_staleness": 2, "discount": 0.25}}


class Federation:
    """A coordinator with members that are connected and contribute when the test says so."""

    def __init__(self, folder: Path, stack: ExitStack, *names: str, **policy: Any) -> None:
        small = found_small(folder / "fed", rounds=ROUNDS, policy=policy, **PLAIN)
        self.coordinator = Coordinator(small)
        self.stack = stack
        stack.callback(self._stop)
        self.members = {name: self.coordinator.join(name) for name in names}
        self.lines: dict[str, Line] = {}
        self.connect(*names)

    def connect(self, *names: str) -> None:
        for name in names:
            line = self.stack.enter_context(self.members[name].connected(self.coordinator))
            self.stack.callback(line.watch().end)
            self.lines[name] = line

    def _stop(self) -> None:
        self.coordinator.stop()
        self.coordinator.store.close()

    def restart(self) -> None:
        self.coordinator = self.coordinator.restarted()
        self.connect(*self.members)

    @property
    def plan(self) -> RoundPlan:
        return self.coordinator.plan

    def contribute(self, name: str, plan: RoundPlan, value: float, **changes: Any) -> Receipt:
        """Send a pseudo-gradient of (value, 0) as an answer to `plan`."""
        with errors_from_status("here"):
            envelope = self.lines[name].sent(plan, np.float32([value, 0]), **changes)
            receipt = self.lines[name].commit(envelope)
        return Receipt.parsed(receipt.payload, what="receipt")

    def close(self) -> None:
        """Let the grace pass for whoever has not answered."""
        self.coordinator.clock.forward(30.0)
        self.coordinator.desk.pass_time()

    def publish(self) -> RoundRecord:
        """Aggregate, and open the next round."""
        if self.coordinator.desk.state.phase is Phase.OPEN:
            self.close()
        made = Manifest.parsed(self.coordinator.aggregate().payload, what="manifest").made
        self.coordinator.desk.pass_time()
        assert made is not None
        return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def refused(family: type[TapestryError], federation: Federation, name: str, plan: RoundPlan) -> str:
    """Return why a contribution is not taken now."""
    with pytest.raises(family) as refusal:
        federation.contribute(name, plan, 0.5)
    assert type(refusal.value) is family
    return str(refusal.value)


def test_a_late_contribution_is_used_once_in_the_next_round_with_its_discount(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c", **LATE)
    first = federation.plan
    assert (first.cohort, first.max_staleness) == (("a", "b", "c"), 2)
    for name in ("a", "b"):
        assert federation.contribute(name, first, 0.1).used_round == 1
    federation.close()
    assert "for the next one; send it again soon" in refused(
        UnavailableError, federation, "c", first
    )
    assert federation.publish().absent[0].member_id == "c"

    second = federation.plan
    receipt = federation.contribute("c", first, 0.3)
    assert (receipt.round, receipt.used_round) == (1, 2)
    again = federation.lines["c"].declared(first, [np.float32([0.3, 0]).tobytes()])
    repeated = Receipt.parsed(federation.lines["c"].commit(again).payload, what="receipt")
    assert repeated == receipt, "a second commit returns the first receipt"
    federation.restart()  # what was acknowledged is there once, whatever dies in between
    assert federation.coordinator.desk.state.late == {"c": 1}
    federation.contribute("a", second, 0.1)
    federation.contribute("b", second, 0.1)
    assert federation.coordinator.desk.state.phase is Phase.AGGREGATING, "c has answered"
    made = federation.publish()
    parts = {p.member_id: (p.staleness, p.base_round, p.weight) for p in made.participation}
    third = pytest.approx(1 / 3)
    assert parts == {"a": (0, None, third), "b": (0, None, third), "c": (1, 0, 0.8 / 3)}
    # 1 - (.1 + .1) / 2 - (.1 / 3 + .1 / 3 + .3 * .8 / 3): against the base it started from.
    vector = federation.coordinator.small.vector(2)
    assert vector == pytest.approx([1 - 0.1 - 0.2 / 3 - 0.3 * 0.8 / 3, 1.0])
    assert federation.coordinator.registry.contributions(1)[-1].member_id == "b"


def test_what_is_too_late_or_was_never_asked_for_is_refused(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c", **LATE)
    first = federation.plan
    for _round in range(3):
        plan = federation.plan
        federation.contribute("a", plan, 0.1)
        federation.contribute("b", plan, 0.1)
        federation.publish()
    assert "round 1 is over, round 4 is open: wait" in refused(
        RejectedError, federation, "c", first
    )
    newcomer = federation.coordinator.join("d")
    federation.members["d"] = newcomer
    federation.connect("d")
    third = RoundPlan.parsed(_plan(federation.coordinator, 3).payload, what="plan")
    assert "round 3 is over" in refused(RejectedError, federation, "d", third), "not in its cohort"
    assert federation.contribute("c", third, 0.1).used_round == 4


def test_a_federation_that_takes_nothing_late_says_so_at_once(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c")
    first = federation.plan
    federation.contribute("a", first, 0.1)
    federation.contribute("b", first, 0.1)
    federation.close()
    assert "not open (aggregating): wait" in refused(RejectedError, federation, "c", first)
    federation.publish()
    assert "round 1 is over, round 2 is open" in refused(RejectedError, federation, "c", first)


def test_who_misses_rounds_is_waited_for_no_more_until_it_contributes(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c", activity={"inactive_after": 2})
    coordinator = federation.coordinator

    def activity() -> dict[str, str]:
        members = coordinator.registry.members()
        return {m.member_id: activity_of(m, inactive_after=2) for m in members}

    for _round in range(2):
        assert coordinator.desk.state.inactive == ()
        plan = federation.plan
        federation.contribute("a", plan, 0.1)
        federation.contribute("b", plan, 0.1)
        federation.publish()
    assert activity() == {"a": "active", "b": "active", "c": "inactive"}
    state = coordinator.desk.state
    assert (state.cohort, state.inactive) == (("a", "b", "c"), ("c",)), (
        "it has the plan all the same"
    )
    federation.contribute("c", federation.plan, 0.1)
    federation.contribute("a", federation.plan, 0.1)
    federation.publish()
    assert activity() == {"a": "active", "b": "active", "c": "active"}
    assert coordinator.desk.state.inactive == ()


def test_one_that_comes_back_is_waited_for_in_one_round(tmp_path: Path, stack: ExitStack) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c", activity={"inactive_after": 1})
    federation.contribute("a", federation.plan, 0.1)
    federation.contribute("b", federation.plan, 0.1)
    federation.publish()
    assert federation.coordinator.desk.state.inactive == ("c",)
    federation.restart()  # everybody connects anew
    federation.contribute("a", federation.plan, 0.1)
    federation.contribute("b", federation.plan, 0.1)
    federation.publish()
    assert federation.coordinator.desk.state.inactive == ()


def test_the_next_plan_has_the_inner_steps_that_follow_from_measured_speeds(
    tmp_path: Path, stack: ExitStack
) -> None:
    pace = {"round_seconds": 4.0, "min_steps": 2, "max_ratio": 3.0}
    federation = Federation(tmp_path, stack, "a", "b", pace=pace)
    first = federation.plan
    assert first.steps_by_member == {}
    federation.coordinator.clock.forward(60)
    # 80 tokens, 8 a step: in 2 and 20 seconds, so 40 and 4 a second, 20 and 2 steps in 4 s.
    federation.contribute("a", first, 0.1, metrics={"seconds": 2.0})
    federation.contribute("b", first, 0.1, metrics={"seconds": 20.0})
    federation.publish()
    second = federation.plan
    assert second.steps_by_member == {"a": 6, "b": 2}  # a: at most three times as many
    assert (second.of("a").inner.steps, second.of("z").inner.steps) == (6, 10)
    with pytest.raises(RejectedError, match="claims 24 tokens in 3 steps, the plan allows 16 in 2"):
        federation.contribute("b", second, 0.1, tokens=24, steps=3)
    federation.contribute("b", second, 0.1, tokens=16, steps=2)
    federation.contribute("a", second, 0.1, tokens=48, steps=6)
    assert [p.tokens for p in federation.publish().participation] == [48, 16]


def test_a_member_that_answers_the_second_plan_at_once_is_not_taken_for_a_fast_one(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b")
    coordinator = federation.coordinator
    coordinator.clock.forward(3600.0)  # nobody has answered: the round is planned again
    coordinator.desk.pass_time()
    assert federation.plan.attempt == 2
    coordinator.clock.forward(1.0)
    # 80 tokens in the 40 seconds before, of the 3601 since the first plan: not in the one since.
    federation.contribute("a", federation.plan, 0.1, metrics={"seconds": 40.0})
    member = coordinator.registry.member("a")
    assert member is not None
    assert member.tokens_per_second == 2.0


def test_an_asynchronous_member_begins_anew_as_soon_as_it_has_delivered(
    tmp_path: Path, stack: ExitStack
) -> None:
    pace, lateness = {"mode": "asynchronous", "buffer": 2}, {"max_staleness": 4}
    names = ("a", "b", "c", "d")
    federation = Federation(tmp_path, stack, *names, pace=pace, lateness=lateness)
    first = federation.plan
    assert (first.is_asynchronous, first.quorum) == (True, 2)
    federation.contribute("a", first, 0.1)
    federation.contribute("b", first, 0.1)
    federation.publish()
    second = federation.plan
    assert federation.contribute("c", first, 0.1).used_round == 2
    assert "round 2 takes no more of c" in refused(UnavailableError, federation, "c", second)
    assert federation.contribute("d", first, 0.1).used_round == 2
    made = federation.publish()
    assert {p.member_id: p.staleness for p in made.participation} == {"c": 1, "d": 1}
    assert federation.contribute("c", second, 0.1).used_round == 3


def _plan(coordinator: Coordinator, number: int) -> Envelope:
    envelope = coordinator.registry.plan(number)
    assert envelope is not None
    return envelope


def test_a_slow_member_never_holds_a_round_beyond_its_deadline(
    tmp_path: Path, stack: ExitStack
) -> None:
    federation = Federation(tmp_path, stack, "a", "b", "c")
    coordinator = federation.coordinator
    slow = federation.lines["c"]
    fragments = [np.float32([0.1, 0]).tobytes()]
    slow.open_upload(federation.plan, fragments)  # and nothing more comes of it
    federation.contribute("a", federation.plan, 0.1)
    assert coordinator.desk.state.phase is Phase.OPEN
    coordinator.clock.forward(3599.0)
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.OPEN
    federation.contribute("b", federation.plan, 0.1)
    coordinator.clock.forward(1.0)  # the grace would last longer
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.AGGREGATING
