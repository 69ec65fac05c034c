"""The round as a pure state machine: no clock, no socket, no file.

`tick(state, event, now=...)` returns the next state and what is to be done. Every event that
changed the state is stored before its effects are performed, so that a restarted coordinator
folds the stored events of the current round and stands where it stood.

```
WAITING ──enough members are here──▶ OPEN ──all answered, or quorum and grace, or deadline──▶
AGGREGATING ──published──▶ WAITING for the next round, or FINISHED

AGGREGATING ──proposed──▶ MEASURING ──nobody dissents──▶ RELEASING ──published──▶ ...
MEASURING ──somebody dissents──▶ HELD ──the operator rules──▶ RELEASING, or RELEASING at once
```
A round whose deadline passes without a quorum is planned again as soon as a quorum is connected:
the base stays as it is, and contributions that arrived stay in.

A contribution whose own round has closed may be used by the round that is open or waited for now:
it is then late by as many rounds as lie between, and its member has answered that round.

A contribution whose member is revoked before its round has closed stays on record and has no
weight; the others count as if it had never come.
"""

from collections.abc import Iterable
from dataclasses import replace

from tapestry.errors import RejectedError, UnavailableError
from tapestry_coordinator.events import (
    Arrived,
    Declined,
    Event,
    Left,
    Measured,
    Proposed,
    Published,
    RoundRules,
    Ruled,
    Tick,
)
from tapestry_coordinator.round_state import Effect, Phase, RoundState


def tick(state: RoundState, event: Event, *, now: float) -> tuple[RoundState, list[Effect]]:
    """Return the state after `event` and what is to be done.

    Args:
        state: Before.
        event: What happened.
        now: Unix seconds at which it happened.

    Raises:
        RejectedError: A member's event does not fit the round; the message says why.
    """
    if isinstance(event, Arrived):
        return _arrive(state, event, now)
    if isinstance(event, Declined):
        return _decline(state, event, now)
    if isinstance(event, Left):
        return _leave(state, event, now)
    if isinstance(event, Published):
        return _publish(state)
    if isinstance(event, Proposed | Measured | Ruled):
        return _gate(state, event, now)
    return _pass_time(state, event, now)


def _arrive(state: RoundState, event: Arrived, now: float) -> tuple[RoundState, list[Effect]]:
    member_id = event.member_id
    if event.staleness == 0:
        require_open(state, member_id)
    elif state.phase not in (Phase.WAITING, Phase.OPEN):
        raise RejectedError(f"round {state.number} takes nothing late: it is {state.phase}")
    known = state.arrived.get(member_id)
    if known == event.digest:
        return state, []
    if known is not None:
        raise RejectedError(
            f"{member_id} already contributed to round {state.number}, something else"
        )
    if member_id in state.excluded:
        raise RejectedError(_out_of(state, member_id))
    state = replace(
        state,
        arrived={**state.arrived, member_id: event.digest},
        late={**state.late, member_id: event.staleness} if event.staleness else state.late,
        tokens=state.tokens + event.tokens,
        declined={m: reason for m, reason in state.declined.items() if m != member_id},
    )
    if state.phase is Phase.WAITING:
        return state, [Effect.ANNOUNCE_STATE]
    return _close_if_due(state, now, changed=True)


def _decline(state: RoundState, event: Declined, now: float) -> tuple[RoundState, list[Effect]]:
    require_open(state, event.member_id)
    if event.member_id in state.arrived or state.declined.get(event.member_id) == event.reason:
        return state, []
    declined = {**state.declined, event.member_id: event.reason}
    return _close_if_due(replace(state, declined=declined), now, changed=True)


def _leave(state: RoundState, event: Left, now: float) -> tuple[RoundState, list[Effect]]:
    """Go on without a member; once a round has closed, what it is made of stays as it is."""
    member_id = event.member_id
    has_contributed = member_id in state.arrived
    if state.phase is Phase.MEASURING and has_contributed and member_id not in state.left:
        return _judge_if_due(replace(state, left=(*state.left, member_id)), now)
    if state.phase is Phase.WAITING and has_contributed:
        return _exclude(state, event), [Effect.ANNOUNCE_STATE]
    if state.phase is not Phase.OPEN:
        return state, []
    if has_contributed:
        return _close_if_due(_exclude(state, event), now, changed=True)
    if member_id not in state.cohort or member_id in {*state.declined, *state.excluded}:
        return state, []
    declined = {**state.declined, member_id: event.reason}
    return _close_if_due(replace(state, declined=declined), now, changed=True)


def _exclude(state: RoundState, event: Left) -> RoundState:
    """Let a contribution count no more; without it there may be no quorum."""
    member_id = event.member_id
    state = replace(
        state,
        arrived={m: digest for m, digest in state.arrived.items() if m != member_id},
        late={m: rounds for m, rounds in state.late.items() if m != member_id},
        tokens=state.tokens - event.tokens,
        excluded={**state.excluded, member_id: event.reason},
    )
    has_quorum_still = state.rules is not None and _ends_with_grace(state, state.rules)
    return state if has_quorum_still else replace(state, quorum_at=None)


def _out_of(state: RoundState, member_id: str) -> str:
    return (
        f"the contribution of {member_id} to round {state.number} does not count "
        f"({state.excluded[member_id]}), and nobody contributes twice: wait for the next plan"
    )


def folded(number: int, recorded: Iterable[tuple[float, Event]]) -> RoundState:
    """Return where a round stands after its stored events, which come with their times."""
    state = RoundState(number=number)
    for at, event in recorded:
        state, _effects = tick(state, event, now=at)
    return state


def require_open(state: RoundState, member_id: str) -> None:
    """Refuse a member's answer that the round does not wait for.

    Raises:
        RejectedError: The round is not open, or the member is not in its cohort.
    """
    if state.phase is not Phase.OPEN:
        raise RejectedError(
            f"round {state.number} is not open ({state.phase}): wait for the next plan"
        )
    if member_id not in state.cohort:
        raise RejectedError(
            f"{member_id} is not in the cohort of round {state.number}: wait for the next plan"
        )


def staleness_of(state: RoundState, member_id: str, *, answers: int, most: int) -> int:
    """Return by how many rounds a member's answer would be late now, 0 if it is in time.

    Args:
        state: Of the round that would use it.
        member_id: Whose answer it is; not one that is in already.
        answers: The round whose plan it answers.
        most: Rounds by which it may be late.

    Raises:
        RejectedError: No round takes it.
        UnavailableError: The next round does: it is to be sent again.
    """
    staleness = state.number - answers
    is_taken = state.phase is Phase.OPEN and staleness == 0
    if state.phase in (Phase.WAITING, Phase.OPEN):
        is_taken = is_taken or 1 <= staleness <= most
    has_answered = member_id in state.arrived or member_id in state.excluded
    if is_taken and not has_answered:
        if staleness == 0:
            require_open(state, member_id)
        return staleness
    if 0 <= staleness < most and state.phase is not Phase.FINISHED:
        raise UnavailableError(
            f"round {state.number} takes no more of {member_id}: its answer to round {answers} is "
            "for the next one; send it again soon"
        )
    if is_taken and member_id in state.excluded:
        raise RejectedError(_out_of(state, member_id))
    if is_taken:
        raise RejectedError(f"{member_id} already contributed to round {state.number}")
    if staleness == 0:
        require_open(state, member_id)
    raise RejectedError(
        f"round {answers} is over, round {state.number} is {state.phase}: wait for the next plan"
    )


def _publish(state: RoundState) -> tuple[RoundState, list[Effect]]:
    if state.phase not in (Phase.AGGREGATING, Phase.RELEASING) or state.rules is None:
        raise ValueError(f"round {state.number} was not being aggregated")
    is_last = 0 < state.rules.total <= state.number
    after = RoundState(number=state.number + 1, phase=Phase.FINISHED if is_last else Phase.WAITING)
    return after, [Effect.ANNOUNCE_STATE]


def _gate(
    state: RoundState, event: Proposed | Measured | Ruled, now: float
) -> tuple[RoundState, list[Effect]]:
    """The no-harm gate, between a candidate and its publication."""
    if isinstance(event, Proposed):
        return _propose(state, event)
    if isinstance(event, Measured):
        return _measure(state, event, now)
    return _rule(state, event)


def _propose(state: RoundState, event: Proposed) -> tuple[RoundState, list[Effect]]:
    if state.phase is not Phase.AGGREGATING:
        raise ValueError(f"round {state.number} was not being aggregated")
    measuring = replace(
        state,
        phase=Phase.MEASURING,
        candidate=event.manifest,
        holds=event.holds,
        measured_until=event.until,
    )
    return measuring, [Effect.ANNOUNCE_STATE]


def _measure(state: RoundState, event: Measured, now: float) -> tuple[RoundState, list[Effect]]:
    if state.phase is not Phase.MEASURING:
        raise RejectedError(
            f"round {state.number} has no candidate to measure: it is {state.phase}"
        )
    state = replace(state, dissent={**state.dissent, event.member_id: event.dissent})
    return _judge_if_due(state, now)


def _judge_if_due(state: RoundState, now: float) -> tuple[RoundState, list[Effect]]:
    """Decide about a candidate that all contributors have measured, or whose time is over."""
    if now < state.measured_until and not set(state.arrived) <= {*state.dissent, *state.left}:
        return state, []
    dissent = [f"{member}: {words}" for member, words in sorted(state.dissent.items()) if words]
    if not dissent:
        return replace(state, phase=Phase.RELEASING), [Effect.RELEASE]
    if state.holds:
        return replace(state, phase=Phase.HELD), [Effect.ANNOUNCE_STATE]
    return replace(state, phase=Phase.RELEASING, reverted="; ".join(dissent)), [Effect.RELEASE]


def _rule(state: RoundState, event: Ruled) -> tuple[RoundState, list[Effect]]:
    if state.phase not in (Phase.MEASURING, Phase.HELD):
        raise RejectedError(f"round {state.number} has no candidate: it is {state.phase}")
    reverted = "" if event.is_released else event.reason
    return replace(state, phase=Phase.RELEASING, reverted=reverted), [Effect.RELEASE]


def _pass_time(state: RoundState, event: Tick, now: float) -> tuple[RoundState, list[Effect]]:
    if state.phase is Phase.OPEN:
        return _replan_if_overdue(*_close_if_due(state, now, changed=False), event, now)
    if state.phase is Phase.MEASURING:
        return _judge_if_due(state, now)
    if state.phase in (Phase.AGGREGATING, Phase.HELD, Phase.RELEASING):
        return state, []
    done = 0 < event.rules.total < state.number
    phase = Phase.FINISHED if done else Phase.WAITING
    if phase is not state.phase:
        return replace(state, phase=phase, quorum_ready_at=None), [Effect.ANNOUNCE_STATE]
    return (state, []) if done else _gather(state, event, now)


def _gather(state: RoundState, event: Tick, now: float) -> tuple[RoundState, list[Effect]]:
    """Open a waiting round once a quorum is here, and the others are or had time to come.

    Inactive members that are connected make a quorum like others, since they get the plan too; the
    others are not waited for if they are inactive.
    """
    if event.is_paused or len({*event.ready, *state.arrived}) < event.rules.quorum:
        return replace(state, quorum_ready_at=None), []
    since = now if state.quorum_ready_at is None else state.quorum_ready_at
    active = set(event.ready) - set(event.inactive)
    if len(active) >= event.enrolled or now - since >= event.rules.gather_seconds:
        return _open(state, event, now)
    return replace(state, quorum_ready_at=since), []


def _open(state: RoundState, event: Tick, now: float) -> tuple[RoundState, list[Effect]]:
    opened = replace(
        state,
        phase=Phase.OPEN,
        attempt=state.attempt + 1,
        rules=event.rules,
        cohort=tuple(sorted({*event.ready, *state.arrived})),
        inactive=event.inactive,
        opened_at=now,
        deadline=now + event.rules.deadline_seconds,
        declined={},
    )
    return opened, [Effect.ANNOUNCE_PLAN]


def _close_if_due(
    state: RoundState, now: float, *, changed: bool
) -> tuple[RoundState, list[Effect]]:
    """Close an open round that has all it waits for."""
    rules = state.rules
    if rules is None:
        raise ValueError("an open round has rules")
    if not has_quorum(state, rules):
        return state, [Effect.ANNOUNCE_STATE] if changed else []
    due = state.deadline
    if _ends_with_grace(state, rules):
        quorum_at = now if state.quorum_at is None else state.quorum_at
        state = replace(state, quorum_at=quorum_at)
        due = min(quorum_at + rules.grace_seconds, due)
    answered = {*state.arrived, *state.declined, *state.excluded}
    everybody = set(state.cohort) <= {*answered, *state.inactive}
    if everybody or now >= due:
        return replace(state, phase=Phase.AGGREGATING, closed_at=now), [Effect.AGGREGATE]
    return state, [Effect.ANNOUNCE_STATE] if changed else []


def has_quorum(state: RoundState, rules: RoundRules) -> bool:
    """Whether what arrived makes an update, by number and by tokens."""
    return len(state.arrived) >= rules.quorum and state.tokens >= rules.quorum_tokens


def _ends_with_grace(state: RoundState, rules: RoundRules) -> bool:
    """Whether a round waits for its grace only: late contributions alone wait for its deadline."""
    if not has_quorum(state, rules):
        return False
    if rules.is_asynchronous:
        return len(state.arrived) >= rules.buffer
    return len(state.arrived) > len(state.late)


def _replan_if_overdue(
    state: RoundState, effects: list[Effect], event: Tick, now: float
) -> tuple[RoundState, list[Effect]]:
    """Plan a round again whose deadline passed without a quorum, once a quorum is here."""
    if state.phase is not Phase.OPEN or now < state.deadline:
        return state, effects
    if len({*event.ready, *state.arrived}) >= event.rules.quorum and not event.is_paused:
        return _open(state, event, now)
    waiting = replace(state, phase=Phase.WAITING, quorum_ready_at=None)
    return waiting, [Effect.ANNOUNCE_STATE]
