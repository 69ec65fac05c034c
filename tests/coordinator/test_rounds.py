"""The round as a pure state machine: times in seconds, chosen so that sums can be read off."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tapestry.errors import RejectedError, UnavailableError
from tapestry_coordinator.events import (
    Arrived,
    Declined,
    Event,
    Published,
    RoundRules,
    Tick,
    event_from_json,
    event_to_json,
)
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tapestry_coordinator.rounds import staleness_of, tick

RULES = RoundRules(
    quorum=2, gather_seconds=10.0, grace_seconds=30.0, deadline_seconds=100.0, total=0
)
FIRST = RoundState(number=1)
LATE_PUBLICATION = Published(manifest="f" * 64)


def here(*ready: str, enrolled: int = 3, rules: RoundRules = RULES) -> Tick:
    """Time goes by with these members connected."""
    return Tick(ready=ready, enrolled=enrolled, rules=rules)


def arrived(member_id: str, digest: str | None = None) -> Arrived:
    return Arrived(member_id=member_id, digest=digest or member_id * 64)


def declined(member_id: str, reason: str = "policy") -> Declined:
    return Declined(member_id=member_id, reason=reason)


def after(state: RoundState, *steps: tuple[float, Event]) -> RoundState:
    """Fold events at their times."""
    for now, event in steps:
        state, _effects = tick(state, event, now=now)
    return state


def opened(*cohort: str, rules: RoundRules = RULES) -> RoundState:
    """Round 1 as it opens at 0 seconds: its deadline is at 100."""
    return after(FIRST, (0.0, here(*cohort, enrolled=len(cohort), rules=rules)))


# Opening


def test_below_the_quorum_nothing_happens_however_long_it_lasts() -> None:
    for now in (0.0, 10.0, 1e6):
        state, effects = tick(FIRST, here("a"), now=now)
        assert (state.phase, state.quorum_ready_at, effects) == (Phase.WAITING, None, [])


def test_a_round_opens_at_once_when_everybody_is_here() -> None:
    state, effects = tick(FIRST, here("a", "b", enrolled=2), now=7.0)
    assert effects == [Effect.ANNOUNCE_PLAN]
    assert state.phase is Phase.OPEN
    assert (state.number, state.attempt, state.cohort) == (1, 1, ("a", "b"))
    assert (state.opened_at, state.deadline) == (7.0, 107.0)  # 7 + 100


def test_a_quorum_waits_ten_seconds_for_the_others() -> None:
    state = after(FIRST, (5.0, here("a", "b")), (14.9, here("a", "b")))
    assert state.phase is Phase.WAITING
    state, effects = tick(state, here("a", "b"), now=15.0)
    assert effects == [Effect.ANNOUNCE_PLAN]
    assert state.cohort == ("a", "b")


def test_whoever_comes_while_the_quorum_waits_is_in_the_cohort() -> None:
    state = after(FIRST, (0.0, here("b", "c")), (3.0, here("a", "b", "c")))
    assert state.phase is Phase.OPEN
    assert state.cohort == ("a", "b", "c")


def test_the_wait_begins_again_when_the_quorum_breaks_up() -> None:
    state = after(FIRST, (0.0, here("a", "b")), (5.0, here("a")), (6.0, here("a", "b")))
    assert after(state, (15.9, here("a", "b"))).phase is Phase.WAITING
    assert after(state, (16.0, here("a", "b"))).phase is Phase.OPEN


def test_a_cohort_is_sorted_whatever_the_order_of_arrival() -> None:
    assert opened("c", "a", "b").cohort == ("a", "b", "c")


# Closing


def test_a_round_closes_when_everybody_has_contributed() -> None:
    state, effects = tick(opened("a", "b"), arrived("a"), now=20.0)
    assert (state.phase, effects) == (Phase.OPEN, [Effect.ANNOUNCE_STATE])
    state, effects = tick(state, arrived("b"), now=21.0)
    assert (state.phase, state.closed_at, effects) == (Phase.AGGREGATING, 21.0, [Effect.AGGREGATE])
    assert state.arrived == {"a": "a" * 64, "b": "b" * 64}


def test_who_declines_is_not_waited_for() -> None:
    state = after(opened("a", "b", "c"), (1.0, declined("c")), (2.0, arrived("a")))
    state, effects = tick(state, arrived("b"), now=3.0)
    assert (state.phase, effects) == (Phase.AGGREGATING, [Effect.AGGREGATE])
    assert state.declined == {"c": "policy"}


def test_refusals_do_not_make_a_quorum() -> None:
    state = after(
        opened("a", "b", "c"), (1.0, arrived("a")), (2.0, declined("b")), (3.0, declined("c"))
    )
    assert state.phase is Phase.OPEN
    assert after(state, (99.9, here("a", "b", "c"))).phase is Phase.OPEN


def test_the_last_answer_closes_the_round_even_if_it_is_a_refusal() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")), (2.0, arrived("b")))
    state, effects = tick(state, declined("c"), now=3.0)
    assert (state.phase, state.closed_at, effects) == (Phase.AGGREGATING, 3.0, [Effect.AGGREGATE])


def test_a_quorum_waits_thirty_seconds_for_the_other_contributions() -> None:
    state = after(opened("a", "b", "c"), (10.0, arrived("a")), (20.0, arrived("b")))
    assert state.quorum_at == 20.0
    assert after(state, (49.9, here())).phase is Phase.OPEN
    closed = after(state, (50.0, here()))  # 20 + 30
    assert (closed.phase, closed.closed_at) == (Phase.AGGREGATING, 50.0)


def test_grace_counts_from_the_quorum_and_not_from_a_later_contribution() -> None:
    state = after(
        opened("a", "b", "c", "d"),
        (20.0, arrived("a")),
        (21.0, arrived("b")),
        (45.0, arrived("c")),
        (51.0, here()),  # 21 + 30
    )
    assert state.phase is Phase.AGGREGATING
    assert set(state.arrived) == {"a", "b", "c"}


def test_the_deadline_cuts_grace_short() -> None:
    state = after(opened("a", "b", "c"), (80.0, arrived("a")), (90.0, arrived("b")))
    assert after(state, (99.9, here())).phase is Phase.OPEN
    closed = after(state, (100.0, here()))  # not 90 + 30
    assert (closed.phase, closed.closed_at) == (Phase.AGGREGATING, 100.0)


def test_a_quorum_of_one_and_no_grace_close_with_the_first_contribution() -> None:
    rules = replace(RULES, quorum=1, grace_seconds=0.0)
    state = after(opened("a", "b", rules=rules), (5.0, arrived("b")))
    assert (state.phase, set(state.arrived)) == (Phase.AGGREGATING, {"b"})


# Planning again


def test_a_round_without_a_quorum_at_its_deadline_is_planned_again_and_keeps_what_came() -> None:
    state = after(opened("a", "b", "c"), (50.0, arrived("a")), (60.0, declined("b")))
    state, effects = tick(state, here("a", "b", "c"), now=100.0)
    assert effects == [Effect.ANNOUNCE_PLAN]
    assert (state.number, state.attempt, state.phase) == (1, 2, Phase.OPEN)
    assert state.deadline == 200.0
    assert state.arrived == {"a": "a" * 64}
    assert state.declined == {}, "the new plan is asked of everybody"


def test_a_contribution_to_the_first_attempt_counts_in_the_second() -> None:
    state = after(opened("a", "b"), (50.0, arrived("a")), (100.0, here("a", "b", enrolled=2)))
    state, effects = tick(state, arrived("b"), now=150.0)
    assert (state.phase, effects) == (Phase.AGGREGATING, [Effect.AGGREGATE])


def test_who_contributed_and_left_stays_in_the_cohort_of_the_next_attempt() -> None:
    state = after(opened("a", "b", "c"), (50.0, arrived("a")), (100.0, here("b", "c")))
    assert state.cohort == ("a", "b", "c")


def test_who_came_after_the_opening_is_in_the_cohort_of_the_next_attempt() -> None:
    state = after(opened("a", "b"), (100.0, here("a", "b", "d")))
    assert state.cohort == ("a", "b", "d")


def test_an_attempt_takes_up_new_rules() -> None:
    rules = replace(RULES, quorum=1, deadline_seconds=7.0, grace_seconds=1.0)
    state = after(opened("a", "b"), (50.0, arrived("a")), (100.0, here("a", "b", rules=rules)))
    assert (state.rules, state.deadline) == (rules, 107.0)
    state = after(state, (100.5, here("a", "b")), (101.5, here("a", "b")))
    assert state.phase is Phase.AGGREGATING, "one contribution and a second of grace are enough now"


def test_nobody_is_planned_for_while_nobody_is_here() -> None:
    # A coordinator that was down past the deadline ticks before its members are back.
    state = after(opened("a", "b"), (500.0, here(enrolled=2)))
    back = after(state, (501.0, here("a", "b", enrolled=2)))
    assert (back.phase, back.cohort) == (Phase.OPEN, ("a", "b")), (
        "members that come back a second later wait a whole deadline for their plan"
    )


# Answers that do not fit


@pytest.mark.parametrize("answer", [arrived("a"), declined("a")])
def test_a_late_answer_is_refused_with_the_reason(answer: Event) -> None:
    closed = after(opened("a", "b", "c"), (1.0, arrived("b")), (2.0, arrived("c")), (40.0, here()))
    with pytest.raises(RejectedError, match=r"^round 1 is not open \(aggregating\): wait for"):
        tick(closed, answer, now=41.0)
    published = after(closed, (50.0, LATE_PUBLICATION))
    with pytest.raises(RejectedError, match=r"^round 2 is not open \(waiting\): wait for"):
        tick(published, answer, now=51.0)


@pytest.mark.parametrize("answer", [arrived("z"), declined("z")])
def test_an_answer_from_outside_the_cohort_is_refused_with_the_reason(answer: Event) -> None:
    with pytest.raises(RejectedError, match=r"^z is not in the cohort of round 1: wait for"):
        tick(opened("a", "b"), answer, now=1.0)


def test_the_same_contribution_twice_changes_nothing() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")))
    assert tick(state, arrived("a"), now=2.0) == (state, [])


def test_a_second_different_contribution_is_refused_with_the_reason() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")))
    with pytest.raises(RejectedError, match=r"^a already contributed to round 1, something else"):
        tick(state, arrived("a", "0" * 64), now=2.0)


def test_the_same_refusal_twice_changes_nothing_and_another_reason_replaces_it() -> None:
    state = after(opened("a", "b", "c"), (1.0, declined("a", "too long")))
    assert tick(state, declined("a", "too long"), now=2.0) == (state, [])
    assert after(state, (3.0, declined("a", "too large"))).declined == {"a": "too large"}


def test_a_contribution_takes_a_refusal_back_and_not_the_other_way_round() -> None:
    state = after(opened("a", "b", "c"), (1.0, declined("a")), (2.0, arrived("a")))
    assert (state.declined, set(state.arrived)) == ({}, {"a"})
    assert tick(state, declined("a"), now=3.0) == (state, [])


# Late answers: their own round has closed, the one that is open or waited for uses them


def late(member_id: str, staleness: int = 1, tokens: int = 0) -> Arrived:
    return Arrived(member_id=member_id, digest="1" * 64, staleness=staleness, tokens=tokens)


def test_a_late_contribution_answers_the_open_round_and_is_no_second_time_taken() -> None:
    state = after(opened("a", "b"), (1.0, late("a")), (2.0, arrived("b")))
    assert (state.phase, set(state.arrived), state.late) == (
        Phase.AGGREGATING, {"a", "b"}, {"a": 1},
    )  # fmt: skip
    state = after(opened("a", "b"), (1.0, late("a")))
    assert tick(state, late("a"), now=2.0) == (state, [])
    with pytest.raises(RejectedError, match=r"^a already contributed to round 1, something else"):
        tick(state, arrived("a"), now=2.0)


def test_a_late_contribution_may_come_before_the_round_opens_or_from_outside_the_cohort() -> None:
    state, effects = tick(FIRST, late("a"), now=1.0)
    assert (state.phase, effects) == (Phase.WAITING, [Effect.ANNOUNCE_STATE])
    state = after(state, (2.0, here("b", "c", enrolled=2)))
    assert (state.phase, state.cohort, state.late) == (Phase.OPEN, ("a", "b", "c"), {"a": 1})
    state = after(state, (3.0, late("z", 2)), (4.0, arrived("b")), (5.0, arrived("c")))
    assert (state.phase, state.late) == (Phase.AGGREGATING, {"a": 1, "z": 2})


def test_late_contributions_alone_close_a_round_at_its_deadline_only() -> None:
    # Else two slow members would end the round before a fast one could finish its inner steps.
    state = after(opened("a", "b", "c"), (1.0, late("b")), (1.0, late("c")), (31.0, here()))
    assert (state.phase, state.quorum_at) == (Phase.OPEN, None)
    assert after(state, (99.9, here())).phase is Phase.OPEN
    assert after(state, (100.0, here())).phase is Phase.AGGREGATING
    timely = after(state, (40.0, arrived("a")))
    assert timely.phase is Phase.AGGREGATING, "everybody has answered"


def test_the_grace_begins_with_the_first_contribution_in_time() -> None:
    state = after(opened("a", "b", "c", "d"), (1.0, late("c")), (1.0, late("d")))
    state = after(state, (50.0, arrived("a")), (79.9, here()))
    assert state.phase is Phase.OPEN
    assert after(state, (80.0, here())).phase is Phase.AGGREGATING  # 50 + 30


def test_an_asynchronous_round_closes_with_the_last_arrival_it_waits_for() -> None:
    rules = replace(RULES, is_asynchronous=True, grace_seconds=0.0)
    state = after(opened("a", "b", "c", rules=rules), (1.0, late("b", 3)), (2.0, late("c")))
    assert (state.phase, state.closed_at) == (Phase.AGGREGATING, 2.0)


@pytest.mark.parametrize(
    ("answers", "most", "staleness"), [(5, 0, 0), (5, 2, 0), (4, 1, 1), (4, 2, 1), (3, 2, 2)]
)
def test_an_answer_is_as_late_as_there_are_rounds_between(
    answers: int, most: int, staleness: int
) -> None:
    state = replace(opened("a", "b"), number=5)
    assert staleness_of(state, "a", answers=answers, most=most) == staleness


@pytest.mark.parametrize(("answers", "most"), [(4, 0), (3, 1), (6, 3)])
def test_an_answer_that_is_too_late_or_of_no_round_yet_is_refused(answers: int, most: int) -> None:
    state = replace(opened("a", "b"), number=5)
    with pytest.raises(RejectedError, match=rf"^round {answers} is over, round 5 is open: wait"):
        staleness_of(state, "a", answers=answers, most=most)


def test_while_a_round_is_aggregated_the_next_one_is_promised_to_who_may_be_late() -> None:
    closed = after(opened("a", "b", "c"), (1.0, arrived("b")), (2.0, arrived("c")), (40.0, here()))
    with pytest.raises(UnavailableError, match="its answer to round 1 is for the next one"):
        staleness_of(closed, "a", answers=1, most=1)
    with pytest.raises(RejectedError, match=r"^round 1 is not open \(aggregating\)"):
        staleness_of(closed, "a", answers=1, most=0)
    third = replace(closed, number=3)
    with pytest.raises(RejectedError, match=r"^round 1 is over, round 3 is aggregating"):
        staleness_of(third, "a", answers=1, most=2)


def test_who_is_in_this_round_already_waits_for_the_next_if_that_can_take_it() -> None:
    state = replace(after(opened("a", "b"), (1.0, late("a"))), number=5)
    with pytest.raises(UnavailableError, match="round 5 takes no more of a"):
        staleness_of(state, "a", answers=5, most=1)
    with pytest.raises(RejectedError, match="a already contributed to round 5"):
        staleness_of(state, "a", answers=5, most=0)


def test_after_the_last_round_nothing_late_is_taken() -> None:
    last = after(aggregating(3, total=3), (3.0, LATE_PUBLICATION))
    with pytest.raises(RejectedError, match="round 3 is over, round 4 is finished"):
        staleness_of(last, "a", answers=3, most=5)
    with pytest.raises(RejectedError, match="round 4 takes nothing late: it is finished"):
        tick(last, late("a"), now=4.0)


# Members that are not waited for


def idle(*ready: str, inactive: tuple[str, ...], enrolled: int = 2) -> Tick:
    return replace(here(*ready, enrolled=enrolled), inactive=inactive)


def test_inactive_members_get_the_plan_and_are_not_waited_for() -> None:
    state = after(FIRST, (0.0, idle("a", "b", "c", inactive=("c",))))
    assert (state.phase, state.cohort, state.inactive) == (Phase.OPEN, ("a", "b", "c"), ("c",))
    state = after(state, (1.0, arrived("a")), (2.0, arrived("b")))
    assert (state.phase, state.closed_at) == (Phase.AGGREGATING, 2.0)


def test_an_inactive_members_contribution_counts() -> None:
    state = after(FIRST, (0.0, idle("a", "b", "c", inactive=("c",))))
    state = after(state, (1.0, arrived("c")), (2.0, arrived("a")), (3.0, arrived("b")))
    assert set(state.arrived) == {"a", "b", "c"}


def test_an_inactive_member_does_not_stand_for_one_that_is_waited_for() -> None:
    state = after(FIRST, (0.0, idle("a", "c", inactive=("c",))))
    assert state.phase is Phase.WAITING, "b is active and may still come"
    assert after(state, (10.0, idle("a", "c", inactive=("c",)))).phase is Phase.OPEN


# A quorum in tokens


def test_a_quorum_of_tokens_is_needed_beside_that_of_contributions() -> None:
    rules = replace(RULES, quorum_tokens=1000, grace_seconds=0.0)
    light = Arrived(member_id="a", digest="a" * 64, tokens=300)
    state = after(opened("a", "b", "c", rules=rules), (1.0, light))
    state = after(state, (2.0, Arrived(member_id="b", digest="b" * 64, tokens=300)), (9.0, here()))
    assert (state.phase, state.tokens) == (Phase.OPEN, 600)
    state = after(state, (10.0, Arrived(member_id="c", digest="c" * 64, tokens=400)))
    assert (state.phase, state.tokens) == (Phase.AGGREGATING, 1000)


def test_a_round_short_of_tokens_is_planned_again_at_its_deadline() -> None:
    rules = replace(RULES, quorum_tokens=1000)
    state = after(
        opened("a", "b", rules=rules), (1.0, arrived("a")), (2.0, arrived("b")),
        (100.0, here("a", "b", rules=rules)),
    )  # fmt: skip
    assert (state.phase, state.attempt, set(state.arrived)) == (Phase.OPEN, 2, {"a", "b"})


# Publishing and finishing


def aggregating(number: int = 1, **rules: int) -> RoundState:
    state = replace(FIRST, number=number)
    chosen = replace(RULES, **rules)
    return after(
        state,
        (0.0, here("a", "b", enrolled=2, rules=chosen)),
        (1.0, arrived("a")),
        (2.0, arrived("b")),
    )


def test_time_does_not_change_a_round_that_is_being_aggregated() -> None:
    state = aggregating()
    assert tick(state, here("a", "b", "c"), now=1e6) == (state, [])


def test_a_published_round_makes_way_for_the_next_which_starts_from_nothing() -> None:
    state, effects = tick(aggregating(), LATE_PUBLICATION, now=3.0)
    assert (state, effects) == (RoundState(number=2), [Effect.ANNOUNCE_STATE])


def test_the_federation_is_finished_after_the_last_round() -> None:
    assert after(aggregating(2, total=3), (3.0, LATE_PUBLICATION)).phase is Phase.WAITING
    last = after(aggregating(3, total=3), (3.0, LATE_PUBLICATION))
    assert (last.number, last.phase) == (4, Phase.FINISHED)
    rules = replace(RULES, total=3)
    assert tick(last, here("a", "b", enrolled=2, rules=rules), now=4.0) == (last, [])


def test_zero_rounds_mean_without_end() -> None:
    assert after(aggregating(10**6, total=0), (3.0, LATE_PUBLICATION)).phase is Phase.WAITING


def test_more_rounds_can_be_asked_for_after_the_last_and_fewer_while_waiting() -> None:
    last = after(aggregating(3, total=3), (3.0, LATE_PUBLICATION))
    state, effects = tick(last, here("a", rules=replace(RULES, total=5)), now=4.0)
    assert (state.number, state.phase, effects) == (4, Phase.WAITING, [Effect.ANNOUNCE_STATE])
    state, effects = tick(state, here("a", rules=replace(RULES, total=2)), now=5.0)
    assert (state.phase, effects) == (Phase.FINISHED, [Effect.ANNOUNCE_STATE])


def test_rules_hold_for_a_whole_round() -> None:
    later = replace(RULES, quorum=3, grace_seconds=0.0, deadline_seconds=1.0, total=1)
    state = after(opened("a", "b"), (2.0, here("a", "b", rules=later)), (3.0, arrived("a")))
    state = after(state, (4.0, here("a", "b", rules=later)), (5.0, arrived("b")))
    assert (state.phase, state.rules) == (Phase.AGGREGATING, RULES)


def test_publishing_what_was_not_aggregated_is_a_bug() -> None:
    for state in (FIRST, opened("a", "b")):
        with pytest.raises(ValueError, match="round 1 was not being aggregated"):
            tick(state, LATE_PUBLICATION, now=1.0)


# Storing


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (here("a", "b", rules=replace(RULES, grace_seconds=0.1)), "tick"),
        (here(enrolled=0), "tick"),
        (idle("a", "b", inactive=("b",)), "tick"),
        (arrived("fr-bnf", "0" * 64), "arrived"),
        (Arrived(member_id="a", digest="0" * 64, tokens=7, staleness=2), "arrived"),
        (declined("fr-bnf", 'its "policy"\nforbids é'), "declined"),
        (LATE_PUBLICATION, "published"),
    ],
)
def test_an_event_is_read_back_as_it_was_stored(event: Event, kind: str) -> None:
    stored_kind, body = event_to_json(event)
    assert stored_kind == kind
    assert event_from_json(stored_kind, body) == event
    assert json.loads(body), "plain JSON"


@dataclass
class Walk:
    """A random federation, driven as the desk drives it: only what changes the state is stored."""

    seed: int
    state: RoundState = FIRST
    now: float = 0.0
    stored: list[tuple[float, str, str]] = field(default_factory=list)
    refusals: int = 0
    published: int = 0

    def run(self, steps: int, check: Callable[["Walk", RoundState, Event], None]) -> None:
        rng = np.random.default_rng(self.seed)
        members = [f"m{i}" for i in range(4)]
        rules = replace(
            RULES, quorum=int(rng.integers(1, 5)), grace_seconds=float(rng.integers(0, 40))
        )
        for _step in range(steps):
            self.now += float(rng.choice([0.0, 1.0, 9.0, 35.0]))
            member = str(rng.choice(members))
            here_now = [m for m in members if rng.random() < 0.7]
            kind = int(rng.integers(0, 10))
            event: Event
            if self.state.phase is Phase.AGGREGATING and kind < 5:
                event = LATE_PUBLICATION
            elif kind < 6:
                event = here(*here_now, enrolled=4, rules=rules)
            elif kind < 8:
                event = arrived(member, str(rng.integers(0, 2)) * 64)
            elif kind < 9:
                event = Arrived(
                    member_id=member, digest="2" * 64, staleness=int(rng.integers(1, 3)), tokens=5
                )
            else:
                event = declined(member)
            self.take(event, check)

    def take(self, event: Event, check: Callable[["Walk", RoundState, Event], None]) -> None:
        before = self.state
        try:
            self.state, _effects = tick(before, event, now=self.now)
        except RejectedError:
            self.refusals += 1
            return
        if self.state != before:
            kind, body = event_to_json(event)
            self.stored.append((self.now, kind, body))
        self.published += isinstance(event, Published)
        check(self, before, event)


def invariants(walk: Walk, before: RoundState, event: Event) -> None:
    state = walk.state
    assert list(state.cohort) == sorted(set(state.cohort)), "no member twice"
    assert {*state.declined} | ({*state.arrived} - {*state.late}) <= set(state.cohort)
    assert set(state.late) <= set(state.arrived)
    assert not {*state.arrived} & {*state.declined}
    if state.phase is Phase.AGGREGATING:
        assert state.rules is not None
        assert len(state.arrived) >= state.rules.quorum, "never without a quorum"
    if isinstance(event, Tick) and state.phase is Phase.OPEN:
        assert walk.now < state.deadline, "never open past the deadline once time has gone by"
    if isinstance(event, Published):
        assert state.number == before.number + 1
    else:
        assert state.number == before.number
        assert before.arrived.items() <= state.arrived.items(), "nothing accepted is lost"
        assert state.attempt >= before.attempt


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_rules_hold_and_stored_events_give_the_same_state(seed: int) -> None:
    walk = Walk(seed)
    walk.run(150, invariants)
    folded = FIRST
    for now, kind, body in walk.stored:
        folded, _effects = tick(folded, event_from_json(kind, body), now=now)
    assert folded == walk.state


def test_the_random_walks_reach_publications_and_refusals() -> None:
    walks = [Walk(seed) for seed in range(10)]
    for walk in walks:
        walk.run(150, invariants)
    assert sum(walk.published for walk in walks) > 20
    assert sum(walk.refusals for walk in walks) > 20
