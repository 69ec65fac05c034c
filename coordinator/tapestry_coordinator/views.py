"""Tables of how a federation stands, read from its registry; also while the coordinator runs.

Each is JSON for programs; `rendering.py` shows it to people. Times are Unix seconds.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.params.codecs import codec_named
from tapestry.params.layout import ParameterLayout
from tapestry_coordinator.actions import newest_actions, pause_in_force
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase, RoundState
from tapestry_coordinator.rounds import folded
from tapestry_coordinator.status import activity_of, status_table
from tapestry_coordinator.tables import invitations


def pause_table(registry: Registry) -> dict[str, Any]:
    """Return since when rounds are paused, by whom and why; None if they are not."""
    pause = pause_in_force(registry)
    if pause is None:
        return {"paused": None}
    return {"paused": {"since": pause.at, "who": pause.who, "reason": pause.detail}}


def members_table(
    home: CoordinatorHome, registry: Registry, *, last: int, now: float
) -> dict[str, Any]:
    """Return all members; rounds do not wait for those that are inactive."""
    del last, now
    after = home.load_policy().activity.inactive_after
    rows = [
        {
            "member_id": m.member_id,
            "role": m.role,
            "status": activity_of(m, inactive_after=after),
            "joined_at": m.joined_at,
            "last_seen_at": m.last_seen_at,
            "missed_rounds": m.missed_rounds,
            "tokens_per_second": round(m.tokens_per_second, 1),
        }
        for m in registry.members()
    ]
    return {"members": rows}


def invitations_table(
    _home: CoordinatorHome, registry: Registry, *, last: int, now: float
) -> dict[str, Any]:
    """Return invitations, oldest first; never the token, which nobody has any more."""
    query = select(invitations).order_by(invitations.c.created_at.desc()).limit(last)
    with registry.begin() as connection:
        found = connection.execute(query).all()
    rows = [
        {
            "member_id": row.member_id,
            "role": row.role,
            "state": _invitation_state(row.used_at, row.withdrawn_at, row.expires_at, now),
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "used_at": row.used_at,
        }
        for row in reversed(found)
    ]
    return {"invitations": rows}


def _invitation_state(
    used_at: float | None, withdrawn_at: float | None, expires_at: float, now: float
) -> str:
    if used_at is not None:
        return "used"
    if withdrawn_at is not None:
        return "withdrawn"
    return "expired" if now >= expires_at else "open"


def exclusions_table(
    _home: CoordinatorHome, registry: Registry, *, last: int, now: float
) -> dict[str, Any]:
    """Return what was left out of the consensus, why, and what the members say to it."""
    del now
    rows = [
        {
            "id": one.id,
            "round": one.round,
            "member_id": one.member_id,
            "kind": one.kind,
            "reason": one.reason,
            "at": one.at,
            "answer": one.answer,
        }
        for one in registry.exclusions()[-last:]
    ]
    return {"exclusions": rows}


def log_table(
    _home: CoordinatorHome, registry: Registry, *, last: int, now: float
) -> dict[str, Any]:
    """Return what operators did."""
    del now
    rows = [
        {"at": a.at, "who": a.who, "what": a.what, "detail": a.detail}
        for a in newest_actions(registry, last=last)
    ]
    return {"actions": rows}


def rounds_table(
    home: CoordinatorHome, registry: Registry, *, last: int, now: float
) -> dict[str, Any]:
    """Return the newest rounds: when, how long, who contributed, who did not and why, bytes."""
    newest = registry.newest_round() or 0
    layout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
    numbers = range(max(1, newest + 2 - last), newest + 2)
    rows = [_round_row(registry, layout, number, now) for number in numbers]
    return {"rounds": [row for row in rows if row["attempts"]]}


def _round_row(
    registry: Registry, layout: ParameterLayout, number: int, now: float
) -> dict[str, Any]:
    recorded = registry.round_events(number)
    state = folded(number, [(at, e) for at, e in recorded if not isinstance(e, Published)])
    envelope = registry.manifest(number)
    published_at = next((at for at, e in recorded if isinstance(e, Published)), None)
    is_over = state.phase not in (Phase.WAITING, Phase.OPEN)
    begun = state.opened_at or None
    end = state.closed_at if is_over else now
    return {
        "round": number,
        "phase": "published" if envelope is not None else state.phase.value,
        "attempts": state.attempt,
        "opened_at": begun,
        "closed_at": state.closed_at if is_over else None,
        "published_at": published_at,
        "seconds": end - begun if begun else None,
        "cohort": list(state.cohort),
        "contributions": sorted(state.arrived),
        "excluded": state.excluded,
        "absent": _absent(state, None if envelope is None else envelope.payload),
        "bytes": _received_bytes(registry, layout, number),
    }


def _absent(state: RoundState, manifest: bytes | None) -> dict[str, str]:
    """Return why each member of the cohort has no part, or none yet."""
    if manifest is not None:
        made = Manifest.parsed(manifest, what="manifest").made
        return {a.member_id: a.reason for a in made.absent} if made else {}
    missing = sorted(set(state.cohort) - {*state.arrived, *state.excluded})
    return {m: state.declined.get(m, "nothing came yet") for m in missing}


def _received_bytes(registry: Registry, layout: ParameterLayout, number: int) -> int:
    """Return the bytes of the round's contributions, as they came."""
    sizes: dict[str, int] = {}
    total = 0
    for stored in registry.contributions(number):
        name = stored.declared.codec
        if name not in sizes:
            bounds = [layout.bounds(index) for index in range(layout.fragments)]
            encoded = codec_named(name).encoded_bytes
            sizes[name] = sum(encoded(stop - start) for start, stop in bounds)
        total += sizes[name]
    return total


def _status(home: CoordinatorHome, registry: Registry, *, last: int, now: float) -> dict[str, Any]:
    del last, now
    return {**status_table(home, registry), **pause_table(registry)}


VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
    "status": _status,
    "members": members_table,
    "rounds": rounds_table,
    "invitations": invitations_table,
    "exclusions": exclusions_table,
    "log": log_table,
}
"""By name; each takes home, registry, `last` and `now`."""
