"""Who is a member and who is invited, as the registry has it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, case, insert, select, update

from tapestry.errors import ConfigError, RejectedError
from tapestry_coordinator.book import Book
from tapestry_coordinator.database import transaction
from tapestry_coordinator.ledgering import entry_of_member
from tapestry_coordinator.tables import invitations, members

ACTIVE = "active"
REVOKED = "revoked"
LEFT = "left"
"""By itself."""
CONTRIBUTOR = "contributor"
OBSERVER = "observer"
OPERATOR = "operator"
AUDITOR = "auditor"
ROLES = (CONTRIBUTOR, OBSERVER, OPERATOR, AUDITOR)
"""What a member may do: train, only watch and measure, or also run the federation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A row of the members' table."""

    member_id: str
    signing_key: str
    certificate_serial: str
    """Hex, of the newest certificate."""
    previous_serial: str
    """Of the one that it renewed; empty after enrolment."""
    status: str
    joined_at: float
    last_seen_at: float
    role: str = CONTRIBUTOR
    missed_rounds: int = 0
    """Published rounds in a row that it neither contributed to nor declined."""
    tokens_per_second: float = 0.0
    """Of its inner steps, the newest counting most; 0: unknown."""


_MEMBER_FIELDS = tuple(field.name for field in fields(Member))
# Read at every call of a member and at every tick: built once, and without SQLAlchemy's mappings,
# which would take most of what a coordinator with a hundred idle members does.
_ALL_MEMBERS = select(*(members.c[name] for name in _MEMBER_FIELDS)).order_by(members.c.member_id)
_ONE_MEMBER = _ALL_MEMBERS.where(members.c.member_id == bindparam("wanted"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Attendance:
    """Who took part in a published round, for the members' rows."""

    answered: Sequence[str]
    """Members that contributed or declined."""
    opened_at: float
    """Who has joined later cannot have missed it."""


class Roster(Book):
    """Members and invitations."""

    def add_invitation(
        self,
        token_digest: bytes,
        *,
        member_id: str,
        now: float,
        expires_at: float,
        role: str = CONTRIBUTOR,
        replaces: bool = False,
    ) -> None:
        """Remember an invitation by the digest of its token.

        Args:
            token_digest: SHA-256 of the token.
            member_id: Who may use it.
            now: Unix seconds.
            expires_at: The same.
            role: What the member may do.
            replaces: Withdraw the member's open invitations; it may be enrolled already, and then
                joins anew, with new keys: its old certificate is good until it does.

        Raises:
            ConfigError: The member is enrolled, or has an open invitation, and nothing is replaced.
        """
        with transaction(self._engine) as connection:
            if not replaces:
                _require_uninvited(connection, member_id, now)
            withdraw_invitations(connection, member_id, now=now)
            connection.execute(
                insert(invitations).values(
                    token_digest=token_digest.hex(),
                    member_id=member_id,
                    created_at=now,
                    expires_at=expires_at,
                    role=role,
                )
            )

    def enrol(
        self,
        token_digest: bytes,
        *,
        member_id: str,
        signing_key: bytes,
        certificate_serial: int,
        now: float,
    ) -> None:
        """Use an invitation up and make its bearer a member.

        Raises:
            RejectedError: No such invitation, for another member, expired, or used.
        """
        with self.ledger.recording() as connection:
            role = self._use_invitation(connection, token_digest, member_id, now)
            row = {
                "role": role,
                "signing_key": signing_key.hex(),
                "certificate_serial": f"{certificate_serial:x}",
                "previous_serial": "",
                "status": ACTIVE,
                "joined_at": now,
                "last_seen_at": now,
                "missed_rounds": 0,
            }
            known = connection.execute(
                update(members).where(members.c.member_id == member_id).values(**row)
            )
            if known.rowcount == 0:
                connection.execute(insert(members).values(member_id=member_id, **row))
            self.ledger.append(connection, entry_of_member(member_id, signing_key))

    def require_invitation(self, token_digest: bytes, *, member_id: str, now: float) -> None:
        """Refuse a token that `enrol` would refuse, without using it.

        Raises:
            RejectedError: As `enrol`.
        """
        with transaction(self._engine) as connection:
            _require_invitation(connection, token_digest, member_id, now)

    def _use_invitation(
        self, connection: Connection, token_digest: bytes, member_id: str, now: float
    ) -> str:
        """Mark an invitation as used; return the role that it gives."""
        role = _require_invitation(connection, token_digest, member_id, now)
        used = connection.execute(
            update(invitations)
            .where(invitations.c.token_digest == token_digest.hex())
            .where(invitations.c.used_at.is_(None))
            .values(used_at=now)
        )
        if used.rowcount != 1:
            raise RejectedError("this invitation was used already: ask for a new one")
        return role

    def member(self, member_id: str) -> Member | None:
        """Return a member, or None."""
        with transaction(self._engine) as connection:
            row = connection.execute(_ONE_MEMBER, {"wanted": member_id}).one_or_none()
        return None if row is None else _member(row)

    def members(self) -> list[Member]:
        """Return all members, by id."""
        with transaction(self._engine) as connection:
            return [_member(row) for row in connection.execute(_ALL_MEMBERS).all()]

    def renew(self, member_id: str, *, certificate_serial: int) -> None:
        """Record a member's new certificate; the one before it stays good until it expires."""
        self._update_member(
            member_id,
            certificate_serial=f"{certificate_serial:x}",
            previous_serial=members.c.certificate_serial,
        )

    def seen(self, member_id: str, *, now: float) -> None:
        """Record that a member was heard of."""
        self._update_member(member_id, last_seen_at=now)

    def revoke(self, member_id: str, *, now: float) -> tuple[bool, int]:
        """End a membership, in force at the next call, and withdraw open invitations to it.

        Returns:
            Whether there was one, and how many were withdrawn.

        Raises:
            ConfigError: Neither a member nor invited.
        """
        is_active = (members.c.member_id == member_id) & (members.c.status == ACTIVE)
        with transaction(self._engine) as connection:
            ended = connection.execute(update(members).where(is_active).values(status=REVOKED))
            withdrawn = withdraw_invitations(connection, member_id, now=now)
        if ended.rowcount == 0 and withdrawn == 0:
            raise ConfigError(
                f"{member_id} is not a member, and has no open invitation: "
                "`tapestry coordinator members` and `invitations` list them"
            )
        return ended.rowcount > 0, withdrawn

    def _update_member(self, member_id: str, **values: Any) -> int:  # noqa: ANN401
        with transaction(self._engine) as connection:
            result = connection.execute(
                update(members).where(members.c.member_id == member_id).values(**values)
            )
        return int(result.rowcount)


def _member(row: Row[Any]) -> Member:
    return Member(**dict(zip(_MEMBER_FIELDS, row, strict=True)))


def _require_invitation(
    connection: Connection, token_digest: bytes, member_id: str, now: float
) -> str:
    row = connection.execute(
        select(invitations).where(invitations.c.token_digest == token_digest.hex())
    ).one_or_none()
    if row is None or row.member_id != member_id:
        raise RejectedError("the coordinator does not know this invitation: ask for a new one")
    if row.used_at is not None:
        raise RejectedError("this invitation was used already: ask for a new one")
    if row.withdrawn_at is not None:
        raise RejectedError("this invitation was withdrawn: ask for a new one")
    if now >= row.expires_at:
        raise RejectedError("this invitation has expired: ask for a new one")
    return str(row.role)


def _require_uninvited(connection: Connection, member_id: str, now: float) -> None:
    status = connection.execute(
        select(members.c.status).where(members.c.member_id == member_id)
    ).scalar()
    if status == ACTIVE:
        raise ConfigError(
            f"{member_id} is a member already: choose another id; or, if it has lost its folder "
            "or its certificate has expired, invite it with --resend"
        )
    is_open = (invitations.c.member_id == member_id) & _is_open(now)
    if connection.execute(select(invitations).where(is_open)).first() is not None:
        raise ConfigError(
            f"{member_id} has an open invitation: --resend withdraws it and makes a new one"
        )


def _is_open(now: float) -> ColumnElement[bool]:
    return (
        invitations.c.used_at.is_(None)
        & invitations.c.withdrawn_at.is_(None)
        & (invitations.c.expires_at > now)
    )


def withdraw_invitations(connection: Connection, member_id: str, *, now: float) -> int:
    """End the open invitations of a member; return how many there were."""
    result = connection.execute(
        update(invitations)
        .where((invitations.c.member_id == member_id) & _is_open(now))
        .values(withdrawn_at=now)
    )
    return int(result.rowcount)


def note_speed(connection: Connection, member_id: str, speed: float) -> None:
    """Move a member's speed half the way to what it was measured at now."""
    known = members.c.tokens_per_second
    connection.execute(
        update(members)
        .where(members.c.member_id == member_id)
        .values(tokens_per_second=case((known > 0, (known + speed) / 2), else_=speed))
    )


def note_attendance(connection: Connection, attendance: Attendance) -> None:
    """Count a published round for those who missed it; who answered begins at 0 again."""
    has_answered = members.c.member_id.in_(attendance.answered)
    connection.execute(update(members).where(has_answered).values(missed_rounds=0))
    connection.execute(
        update(members)
        .where(~has_answered)
        .where(members.c.status == ACTIVE)
        .where(members.c.role == CONTRIBUTOR)
        .where(members.c.joined_at <= attendance.opened_at)
        .values(missed_rounds=members.c.missed_rounds + 1)
    )
