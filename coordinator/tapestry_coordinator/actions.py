"""What operators did to the federation, who, and when; a pause is the newest of its kind.

Nothing is ever changed in this log or taken out. Whether rounds are paused follows from it, so a
pause survives every restart, and its author and reason are never apart from it.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from tapestry_coordinator.registry import Registry
from tapestry_coordinator.tables import actions

PAUSE = "pause"
RESUME = "resume"
_NEWEST_PAUSE = (  # read at every tick: built once
    select(actions.c.at, actions.c.who, actions.c.what, actions.c.detail)
    .where((actions.c.what == PAUSE) | (actions.c.what == RESUME))
    .order_by(actions.c.id.desc())
    .limit(1)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One thing that an operator did."""

    at: float
    who: str
    """A member id, or a user of the coordinator's machine."""
    what: str
    detail: str


def record(connection: Connection, *, who: str, what: str, detail: str, now: float) -> None:
    """Enter an action, in the transaction of what it does."""
    connection.execute(insert(actions).values(at=now, who=who[:128], what=what, detail=detail))


def newest_actions(registry: Registry, *, last: int) -> list[Action]:
    """Return the newest `last` actions, oldest first."""
    query = select(actions).order_by(actions.c.id.desc()).limit(last)
    with registry.begin() as connection:
        rows = connection.execute(query).all()
    return [
        Action(at=row.at, who=row.who, what=row.what, detail=row.detail) for row in reversed(rows)
    ]


def pause_in_force(registry: Registry) -> Action | None:
    """Return the action by which rounds are paused, None if they are not."""
    with registry.begin() as connection:
        return newest_pause(connection)


def newest_pause(connection: Connection) -> Action | None:
    """Return the same in a transaction that is under way."""
    row = connection.execute(_NEWEST_PAUSE).one_or_none()
    if row is None or row.what == RESUME:
        return None
    return Action(at=row.at, who=row.who, what=row.what, detail=row.detail)
