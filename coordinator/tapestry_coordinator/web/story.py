"""What state the federation is in, in one sentence for a person who has never seen it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tapestry.web.markup import lasting, of
from tapestry_coordinator.round_state import Phase

FRESH_SECONDS = 10.0
"""Age of a heartbeat after which the coordinator counts as silent."""
_LEFT_SECONDS = 14 * 86_400.0
"""Of the coordinator's certificate: it renews it long before."""

_STATES = ("training", "uploading", "waiting", "absent", "declined")


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """The sentence, what to know beside it, and whether it is good."""

    tone: str
    """good, busy, idle, warn or bad."""
    title: str
    detail: str = ""


def story_of(
    live: Mapping[str, Any] | None, *, members: int, database_error: str, now: float
) -> Story:
    """Tell how things stand.

    Args:
        live: What the coordinator last wrote, if it runs or crashed.
        members: How many the federation has.
        database_error: Why the registry cannot be read; empty if it can.
        now: Unix seconds.
    """
    if database_error:
        detail = f"{database_error}. The coordinator goes on when it is back; nothing is lost."
        return Story(tone="bad", title="The database does not answer.", detail=detail)
    if live is None:
        return Story(
            tone="bad",
            title="The coordinator is not running.",
            detail="No round goes on. Start it with `tapestry coordinator serve`; it takes up "
            "where it was.",
        )
    silence = now - live["time"]
    if silence > FRESH_SECONDS:
        return Story(
            tone="bad",
            title=f"The coordinator has been silent for {lasting(silence)}.",
            detail="It crashed, or its machine is overloaded. Look at its log; starting it again "
            "loses nothing.",
        )
    left = certificate_left(live, now)
    if left is not None:
        return Story(
            tone="bad",
            title=f"The coordinator's certificate ends in {lasting(left)}.",
            detail="It could not renew it; its log says why. Nobody can connect after that.",
        )
    if members == 0:
        return Story(
            tone="idle",
            title="No institution has joined yet.",
            detail="Invite the first with `tapestry coordinator invite MEMBER`.",
        )
    return _of_phase(live, now)


def certificate_left(live: Mapping[str, Any], now: float) -> float | None:
    """Return how many seconds are left of the coordinator's certificate if they are too few."""
    ends = live.get("ends", {}).get("certificate")
    left = None if ends is None else max(0.0, ends - now)
    return None if left is None or left > _LEFT_SECONDS else left


_GATE = {
    Phase.MEASURING: (
        "Members measure the new consensus of round {} before it is published.",
        "Each on its own text; it is published unless it does harm.",
    ),
    Phase.HELD: (
        "Round {} is held: a member found the new consensus worse for its text.",
        "You decide: `tapestry coordinator release {0}` or `tapestry coordinator revert {0}`.",
    ),
    Phase.RELEASING: ("Round {} is being published.", ""),
}


def _of_phase(live: Mapping[str, Any], now: float) -> Story:
    number, phase = live["round"], live["phase"]
    if phase == Phase.OPEN:
        return _open(live, now)
    if phase == Phase.AGGREGATING:
        contributions = of(len(live["arrived"]), "contribution")
        return Story(tone="busy", title=f"Round {number} is being combined from {contributions}.")
    if phase in _GATE:
        title, detail = _GATE[phase]
        tone = "warn" if phase == Phase.HELD else "busy"
        return Story(tone=tone, title=title.format(number), detail=detail.format(number))
    if phase == Phase.FINISHED:
        return Story(
            tone="good",
            title=f"All {live['total']} rounds are done.",
            detail="Raise `total` in the rounds' settings to go on.",
        )
    if live.get("paused") is not None:
        return Story(
            tone="warn",
            title=f"Rounds are paused; {number} is next.",
            detail=f"{live['paused'] or 'No reason was given'}. `tapestry coordinator resume`",
        )
    here = sum(member["connected"] for member in live["members"].values())
    title = f"Waiting for members: {here} of the {live['quorum']} that round {number} needs"
    return Story(
        tone="idle" if here else "warn", title=f"{title} {'is' if here == 1 else 'are'} here."
    )


def _open(live: Mapping[str, Any], now: float) -> Story:
    cohort, arrived, quorum = live["cohort"], len(live["arrived"]), live["quorum"]
    total = f" of {live['total']}" if live["total"] else ""
    verb = "has" if arrived == 1 else "have"
    title = (
        f"Round {live['round']}{total} is open: {arrived} of {of(len(cohort), 'member')} {verb} "
        "contributed."
    )
    states = Counter(live["members"][m]["state"] for m in cohort if m in live["members"])
    doing = ", ".join(f"{states[s]} {s}" for s in _STATES if states[s])
    left = (live["closes_at"] or now) - now
    closing = f"closes in {lasting(left)} at the latest" if left > 0 else "is past its deadline"
    need = "" if arrived >= quorum else f", needs {of(quorum, 'contribution')}"
    detail = f"{doing[:1].upper()}{doing[1:]}. It {closing}{need}." if doing else ""
    late = left <= 0 or states["absent"] + states["declined"] > len(cohort) - quorum
    return Story(tone="warn" if late else "good", title=title, detail=detail or f"It {closing}.")
