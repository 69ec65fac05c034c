"""What members are told: the whole present state, and a sentence about it."""

from collections.abc import Set
from dataclasses import dataclass

from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.actions import Action
from tapestry_coordinator.presence import Presence
from tapestry_coordinator.round_state import Phase, RoundState

_BETWEEN = {
    Phase.AGGREGATING: "being aggregated",
    Phase.MEASURING: "members measure the new consensus before it is published",
    Phase.HELD: "held: a member found it worse for its text, and the operator decides",
    Phase.RELEASING: "being published",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Announcement:
    """What a member is told: the whole present state."""

    version: int
    plan: Envelope | None
    manifest: Envelope
    candidate: Envelope | None
    is_finished: bool
    notice: str
    ledger_head: str = ""
    """A note: the newest head, which covers the manifest."""


def notice(
    state: RoundState,
    member_id: str,
    *,
    contributors: Set[str],
    presence: Presence,
    quorum: int,
    pause: Action | None,
) -> str:
    """Return what a member is told in words.

    Args:
        state: Of the round.
        member_id: Who is told.
        contributors: Active members that train.
        presence: Who is connected.
        quorum: How many of them open a round.
        pause: By which rounds are paused, if they are.
    """
    if state.phase is Phase.FINISHED:
        return "no further round is planned"
    if state.phase is Phase.WAITING and pause is not None:
        reason = f": {pause.detail}" if pause.detail else ""
        return f"the federation's operator has paused it before round {state.number}{reason}"
    if state.phase is Phase.WAITING:
        here = presence.count(contributors)
        return f"waiting for members: {here} here, {quorum} needed to open round {state.number}"
    if state.phase in _BETWEEN:
        return f"round {state.number}: {_BETWEEN[state.phase]}"
    if member_id not in state.cohort and member_id in contributors:
        return f"round {state.number} opened before this node came; it joins the next one"
    asked = {*state.cohort, *state.arrived}
    said = f"round {state.number}: {len(state.arrived)} of {len(asked)} contributed"
    return f"{said}; the operator has paused what comes after it" if pause else said
