"""Members that are members no more, in the state machine: what they handed in counts no more."""

import json
from dataclasses import replace

import pytest

from tapestry.errors import RejectedError
from tapestry_coordinator.events import (
    Arrived,
    Left,
    Measured,
    Proposed,
    event_from_json,
    event_to_json,
)
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.rounds import staleness_of
from tests.coordinator.test_rounds import RULES, after, arrived, here, late, opened


def left(member_id: str, tokens: int = 0) -> Left:
    return Left(member_id=member_id, reason="revoked", tokens=tokens)


def test_the_contribution_of_who_left_counts_no_more_and_the_others_make_the_quorum() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")), (2.0, arrived("b")), (3.0, left("a")))
    assert (state.phase, sorted(state.arrived)) == (Phase.OPEN, ["b"])
    assert state.excluded == {"a": "revoked"}
    assert state.quorum_at is None, "one of two is no quorum"
    state = after(state, (50.0, arrived("c")))
    assert (state.phase, sorted(state.arrived)) == (Phase.AGGREGATING, ["b", "c"])


def test_the_grace_begins_anew_with_the_quorum() -> None:
    state = after(opened("a", "b", "c", "d"), (1.0, arrived("a")), (2.0, arrived("b")))
    state = after(state, (3.0, left("a")), (50.0, arrived("c")), (79.0, here("b", "c", "d")))
    assert (state.phase, state.quorum_at) == (Phase.OPEN, 50.0)
    assert after(state, (80.0, here("b", "c", "d"))).phase is Phase.AGGREGATING


def test_nobody_waits_for_who_left() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")), (2.0, arrived("b")), (3.0, left("c")))
    assert (state.phase, state.declined) == (Phase.AGGREGATING, {"c": "revoked"})


def test_tokens_and_lateness_go_with_the_contribution() -> None:
    state = after(opened("a", "b"), (1.0, late("c", tokens=40)), (2.0, left("c", tokens=40)))
    assert (state.tokens, state.late, state.arrived) == (0, {}, {})


def test_a_late_contribution_to_a_round_that_waits_is_excluded_too() -> None:
    state = after(opened("a", "b"), (101.0, here("a")), (102.0, late("c")), (103.0, left("c")))
    assert (state.phase, state.excluded) == (Phase.WAITING, {"c": "revoked"})


def test_a_round_without_a_quorum_once_somebody_left_is_planned_again_without_it() -> None:
    state = after(opened("a", "b"), (1.0, arrived("a")), (2.0, left("a")), (100.0, here("b", "d")))
    assert (state.attempt, state.cohort) == (2, ("b", "d"))


def test_who_is_a_member_again_contributes_to_the_next_round() -> None:
    state = after(opened("a", "b"), (1.0, arrived("a")), (2.0, left("a")))
    with pytest.raises(RejectedError, match=r"does not count \(revoked\).*next plan"):
        after(state, (3.0, arrived("a", "e" * 64)))
    with pytest.raises(RejectedError, match="nobody contributes twice"):
        staleness_of(state, "a", answers=1, most=0)


def test_what_a_closed_round_is_made_of_stays_and_its_gate_waits_for_the_others() -> None:
    closed = after(opened("a", "b"), (1.0, arrived("a")), (2.0, arrived("b")))
    assert after(closed, (3.0, left("a"))) == closed
    state = after(closed, (3.0, Proposed(manifest="f" * 64, holds=True, until=600.0)))
    state = after(state, (4.0, left("a")))
    assert (state.phase, sorted(state.arrived)) == (Phase.MEASURING, ["a", "b"])
    state = after(state, (5.0, Measured(member_id="b", dissent="")))
    assert state.phase is Phase.RELEASING


def test_leaving_twice_changes_nothing_and_is_stored_as_it_was() -> None:
    state = after(opened("a", "b", "c"), (1.0, arrived("a")), (2.0, left("a")), (3.0, left("b")))
    assert after(state, (4.0, left("a")), (5.0, left("b")), (6.0, left("z"))) == state
    kind, body = event_to_json(left("a", 3))
    assert (kind, json.loads(body)["tokens"]) == ("left", 3)
    assert event_from_json(kind, body) == left("a", 3)


def test_rules_by_tokens_count_without_who_left() -> None:
    state = opened("a", "b", "c", rules=replace(RULES, quorum_tokens=100))
    for member in ("a", "b"):
        state = after(state, (1.0, Arrived(member_id=member, digest="e" * 64, tokens=60)))
    assert state.quorum_at == 1.0
    assert after(state, (2.0, left("a", tokens=60))).quorum_at is None
