"""A member that ends its own membership."""

from sqlalchemy import select, update

from tapestry_coordinator.actions import record
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import ACTIVE, LEFT, withdraw_invitations
from tapestry_coordinator.tables import actions, members

LEAVE = "leave"


def end_membership(registry: Registry, member_id: str, *, reason: str, now: float) -> float:
    """End a membership as the member asked, in force at its next call; return when it ended.

    What it has contributed stays as it is. Once it has ended, the same call changes nothing.
    """
    is_active = (members.c.member_id == member_id) & (members.c.status == ACTIVE)
    with registry.begin() as connection:
        ended = connection.execute(update(members).where(is_active).values(status=LEFT))
        if ended.rowcount:
            withdraw_invitations(connection, member_id, now=now)
            record(connection, who=member_id, what=LEAVE, detail=reason, now=now)
            return now
        before = (
            select(actions.c.at)
            .where((actions.c.who == member_id) & (actions.c.what == LEAVE))
            .order_by(actions.c.id.desc())
            .limit(1)
        )
        return float(connection.execute(before).scalar() or now)
