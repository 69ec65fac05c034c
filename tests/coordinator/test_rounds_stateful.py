"""hypothesis looks for a sequence of events that breaks the state machine, and shrinks it."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tapestry.errors import RejectedError
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
from tapestry_coordinator.round_state import Phase, RoundState
from tapestry_coordinator.rounds import folded, tick

MEMBERS = ("a", "b", "c", "d")
RULES = RoundRules(
    quorum=2, gather_seconds=10.0, grace_seconds=30.0, deadline_seconds=100.0, total=0
)
members = st.sampled_from(MEMBERS)


class Rounds(RuleBasedStateMachine):
    """A coordinator's rounds, driven as the desk drives them: only changes are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RoundState(number=1)
        self.now = 0.0
        self.here: set[str] = set()
        self.rules = RULES
        self.stored: dict[int, list[tuple[float, str, str]]] = {1: []}
        self.accepted: dict[int, dict[str, str]] = {1: {}}

    def take(self, event: Event) -> None:
        number = self.state.number
        after, _effects = tick(self.state, event, now=self.now)
        if after != self.state:
            kind, body = event_to_json(event)
            self.stored.setdefault(number, []).append((self.now, kind, body))
            self.state = after

    @rule(seconds=st.floats(min_value=0.0, max_value=150.0))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        ready = tuple(sorted(self.here))
        self.take(Tick(ready=ready, enrolled=len(MEMBERS), rules=self.rules))

    @rule(member=members)
    def comes(self, member: str) -> None:
        self.here.add(member)

    @rule(member=members)
    def leaves(self, member: str) -> None:
        self.here.discard(member)

    @rule(quorum=st.integers(1, 4), grace=st.sampled_from([0.0, 30.0, 500.0]))
    def settings_change(self, quorum: int, grace: float) -> None:
        self.rules = replace(RULES, quorum=quorum, grace_seconds=grace)

    @rule(member=members, digest=st.sampled_from("01"))
    def arrives(self, member: str, digest: str) -> None:
        accepted = self.accepted.setdefault(self.state.number, {})
        try:
            self.take(Arrived(member_id=member, digest=digest * 64))
        except RejectedError:
            known = accepted.get(member)
            is_waited_for = self.state.phase is Phase.OPEN and member in self.state.cohort
            assert not is_waited_for or known not in {None, digest * 64}, "refused for no reason"
        else:
            assert accepted.setdefault(member, digest * 64) == digest * 64, "the first one stands"

    @rule(member=members)
    def declines(self, member: str) -> None:
        try:
            self.take(Declined(member_id=member, reason="policy"))
        except RejectedError:
            assert self.state.phase is not Phase.OPEN or member not in self.state.cohort

    @precondition(lambda self: self.state.phase is Phase.AGGREGATING)
    @rule()
    def publishes(self) -> None:
        number = self.state.number
        assert self.state.arrived == self.accepted[number], "all that was accepted is aggregated"
        self.take(Published(manifest="f" * 64))
        assert self.state.number == number + 1

    @rule()
    def crashes(self) -> None:
        """A new process stands where the old one stood."""
        number = self.state.number
        events = [
            (at, event_from_json(kind, body)) for at, kind, body in self.stored.get(number, [])
        ]
        again = folded(number, events)
        assert again == self.state
        self.here.clear()

    @invariant()
    def nothing_accepted_is_lost(self) -> None:
        assert self.state.arrived == self.accepted.get(self.state.number, {})

    @invariant()
    def nobody_answers_twice(self) -> None:
        state = self.state
        assert not {*state.arrived} & {*state.declined}
        assert {*state.arrived, *state.declined} <= {*state.cohort}

    @invariant()
    def a_round_is_not_aggregated_without_its_quorum(self) -> None:
        if self.state.phase is Phase.AGGREGATING:
            assert self.state.rules is not None
            assert len(self.state.arrived) >= self.state.rules.quorum

    @invariant()
    def a_quorum_that_stays_is_never_left_waiting(self) -> None:
        """From here, if all members stay and answer, the round is aggregated in time."""
        state, now = self.state, self.now
        ready = Tick(ready=MEMBERS, enrolled=len(MEMBERS), rules=RULES)
        for seconds in (0.0, 100.0):  # at the latest, the open plan's deadline passes first
            now += seconds
            state, _effects = tick(state, ready, now=now)
            if state.phase is Phase.OPEN and set(MEMBERS) <= {*state.cohort}:
                break
        for member in MEMBERS:
            if state.phase is Phase.OPEN and member not in state.arrived:
                arrived = Arrived(member_id=member, digest="e" * 64)
                if member in state.cohort:
                    state, _effects = tick(state, arrived, now=now)
        assert state.phase is Phase.AGGREGATING


TestRounds = Rounds.TestCase
TestRounds.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
