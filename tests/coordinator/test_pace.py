"""Inner steps by speed, asynchronous rules, and the clock that rounds go by."""

from dataclasses import dataclass

import pytest

from tapestry.checkpoints.policy import FederationPolicy, LatenessPolicy, PacePolicy
from tapestry_coordinator.clock import SteadyClock
from tapestry_coordinator.events import RoundRules, Tick
from tapestry_coordinator.pace import MOST_STEPS, paced, speed_of, steps_for
from tapestry_coordinator.round_state import Phase, RoundState
from tests.coordinator.test_rounds import after, arrived

RULES = RoundRules(
    quorum=2, gather_seconds=10.0, grace_seconds=30.0, deadline_seconds=100.0, total=0
)


def pace(**values: float) -> PacePolicy:
    return PacePolicy.model_validate({"round_seconds": 100.0, "min_steps": 10, **values})


def test_steps_are_speed_times_time_over_the_tokens_of_a_step() -> None:
    # 100 s at 50 and 20 tokens a second, 100 tokens a step.
    assert steps_for({"a": 50.0, "b": 20.0}, pace(), step_tokens=100) == {"a": 50, "b": 20}


def test_nobody_takes_fewer_than_the_fewest_nor_more_than_a_multiple_of_anothers() -> None:
    steps = steps_for({"fast": 900.0, "slow": 1.0}, pace(max_ratio=8.0), step_tokens=100)
    assert steps == {"fast": 80, "slow": 10}  # 900 and 1 without bounds


def test_who_is_not_known_yet_takes_what_all_take() -> None:
    assert steps_for({"new": 0.0, "b": 20.0}, pace(), step_tokens=100) == {"b": 20}
    assert steps_for({"new": 0.0}, pace(), step_tokens=100) == {}


def test_without_a_time_everybody_takes_the_same_steps() -> None:
    assert steps_for({"a": 50.0}, pace(round_seconds=0.0), step_tokens=100) == {}


def test_an_absurd_speed_gives_no_plan_that_cannot_be_signed() -> None:
    assert steps_for({"a": 1e30}, pace(), step_tokens=100) == {"a": MOST_STEPS}


def test_a_declared_time_is_no_longer_than_the_round_has_been_open() -> None:
    assert speed_of(600, seconds=30.0, at_most_seconds=60.0) == 20.0
    assert speed_of(600, seconds=1e9, at_most_seconds=60.0) == 10.0
    assert speed_of(600, seconds=0.0, at_most_seconds=60.0) == 0.0, "unknown"
    assert speed_of(600, seconds=30.0, at_most_seconds=-1.0) == 0.0


def test_a_synchronous_federation_keeps_its_rules() -> None:
    assert paced(RULES, PacePolicy(), active=100) is RULES


@pytest.mark.parametrize(
    ("buffer", "active", "arrivals"),
    [(0, 2, 2), (0, 3, 2), (0, 5, 3), (0, 100, 4), (7, 100, 7), (7, 5, 5), (1, 100, 2)],
)
def test_an_asynchronous_round_closes_after_its_buffer_and_never_below_the_quorum(
    buffer: int, active: int, arrivals: int
) -> None:
    rules = paced(RULES, PacePolicy(mode="asynchronous", buffer=buffer), active=active)
    assert (rules.buffer, rules.grace_seconds, rules.is_asynchronous) == (arrivals, 0.0, True)
    assert rules.quorum == RULES.quorum
    assert rules.deadline_seconds == RULES.deadline_seconds


def test_members_that_never_come_do_not_keep_an_asynchronous_round_from_its_end() -> None:
    rules = paced(RULES, PacePolicy(mode="asynchronous"), active=7)  # four of seven close a round
    late = Tick(ready=("a", "b"), enrolled=7, rules=rules)
    state = after(RoundState(number=1), (0.0, late), (10.0, late))
    assert state.phase is Phase.OPEN, "a quorum is here"
    state = after(state, (11.0, arrived("a")), (12.0, arrived("b")))
    assert state.phase is Phase.AGGREGATING, "all who were asked have answered"

    some = Tick(ready=("a", "b", "c", "d", "e"), enrolled=7, rules=rules)
    state = after(RoundState(number=1), (0.0, some), (10.0, some))
    state = after(state, (11.0, arrived("a")), (12.0, arrived("b")), (13.0, arrived("c")))
    assert after(state, (14.0, arrived("d"))).phase is Phase.AGGREGATING, "at once"
    assert after(state, (109.0, some)).phase is Phase.OPEN
    assert after(state, (110.0, some)).phase is Phase.AGGREGATING, "a quorum, at the deadline"


def test_an_asynchronous_federation_that_refuses_late_ones_is_refused() -> None:
    asynchronous = PacePolicy(mode="asynchronous")
    with pytest.raises(ValueError, match=r"raise lateness\.max_staleness to 4"):
        FederationPolicy(pace=asynchronous)
    FederationPolicy(pace=asynchronous, lateness=LatenessPolicy(max_staleness=4))


@dataclass
class Hand:
    """A clock that the test sets."""

    now: float

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_calendar_that_jumps_moves_no_deadline(jump: float) -> None:
    calendar, monotonic = Hand(1_750_000_000.0), Hand(5.0)
    clock = SteadyClock(calendar, monotonic)
    assert clock() == 1_750_000_000.0
    calendar.now += jump
    monotonic.now += 7.0
    assert clock() == 1_750_000_007.0


def test_a_restart_takes_the_calendar_up_again_but_never_goes_back() -> None:
    monotonic = Hand(5.0)
    assert SteadyClock(Hand(2000.0), monotonic, not_before=1000.0)() == 2000.0
    behind = SteadyClock(Hand(1000.0), monotonic, not_before=2000.0)
    assert behind() == 2000.0
    monotonic.now += 3.0
    assert behind() == 2003.0
