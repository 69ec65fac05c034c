"""The registry: everything a coordinator must remember, in one SQL database.

Every method is one transaction. The caller passes `now`; nothing here reads a clock.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Contribution
from tapestry.errors import ConfigError, RejectedError, UnavailableError
from tapestry.identity.envelopes import Envelope, from_json, to_json
from tapestry.ledger.entries import PLAN, Entry
from tapestry_coordinator import failpoints, rounds
from tapestry_coordinator.chain import Chain
from tapestry_coordinator.database import (
    at_every_turn,
    open_database,
    require_sound,
    transaction,
)
from tapestry_coordinator.ledgering import (
    Ledger,
    Seal,
    entry_of_checkpoint,
    entry_of_exclusion,
    entry_of_member,
)
from tapestry_coordinator.tables import (
    contributions,
    evaluations,
    events,
    exclusions,
    invitations,
    manifests,
    members,
    plans,
    policies,
    rulings,
)

ACTIVE = "active"
MOST_EXCLUSIONS = 20
"""On record of one member in one round."""
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
class StoredContribution:
    """A committed contribution, as it was signed."""

    round: int
    member_id: str
    digest: str
    envelope: Envelope
    receipt: Envelope
    norm: float
    signing_key: bytes
    """Raw Ed25519 public key of the member when it committed."""
    staleness: int = 0
    """By how many rounds it was late."""

    @property
    def declared(self) -> Contribution:
        """What its member signed."""
        what = f"contribution of {self.member_id}"
        return Contribution.parsed(self.envelope.payload, what=what)

    @property
    def used_round(self) -> int:
        """The round whose update it is a part of."""
        return self.round + self.staleness


@dataclass(frozen=True, kw_only=True, slots=True)
class Attendance:
    """Who took part in a published round, for the members' rows."""

    answered: Sequence[str]
    """Members that contributed or declined."""
    opened_at: float
    """Who has joined later cannot have missed it."""


class Receiving:
    """A contribution that is about to be recorded: its receipt names its place in the ledger."""

    def __init__(self, entry: Entry, made: Callable[[int], StoredContribution]) -> None:
        """Have `made` called with the number of the entry once that is known."""
        self.entry = entry
        self._made = made
        self._stored: StoredContribution | None = None

    def receive(self, index: int) -> StoredContribution:
        """Return what is stored, its receipt signed."""
        self._stored = self._made(index)
        return self._stored

    @property
    def stored(self) -> StoredContribution:
        """What was recorded.

        Raises:
            UnavailableError: Nothing was.
        """
        if self._stored is None:
            raise UnavailableError("the round did not take the contribution: send it again")
        return self._stored


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvaluation:
    """What a member measured of a published checkpoint."""

    round: int
    member_id: str
    language: str
    bits_per_byte: float
    held_out_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyVersion:
    """A federation policy as it was recorded."""

    version: int
    digest: str
    policy: FederationPolicy
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """Something of a member that was left out, why, and what the member says to it."""

    id: int
    round: int
    member_id: str
    kind: str
    """`refused`: a contribution, when it came; `no weight`: by the rule, when it was used."""
    reason: str
    at: float
    answer: str
    answered_at: float | None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the operator decided about a candidate."""

    is_released: bool
    reason: str


class Registry:
    """Members, invitations, policies, plans, events, contributions, manifests, evaluations."""

    def __init__(self, url: str) -> None:
        """Connect to the database at `url` and bring its schema up to date.

        Raises:
            ConfigError: It cannot be opened.
        """
        self._engine = open_database(url)
        self.ledger = Ledger(self.begin)
        """Of everything that was recorded."""

    def fence(self, check: Callable[[Connection], None]) -> None:
        """Let `check` refuse a transaction of ours by raising, before it has done anything."""
        at_every_turn(self._engine, check)

    def require_sound(self) -> None:
        """Look through the database if it is a file.

        Raises:
            ConfigError: It is damaged.
        """
        require_sound(self._engine)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Begin a transaction, for what other modules keep in this database."""
        with transaction(self._engine) as connection:
            yield connection

    # Membership

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

    # Policies

    def adopt_policy(self, policy: FederationPolicy, *, now: float) -> PolicyVersion:
        """Record a policy as the newest version, unless it is that already; return the newest."""
        newest = self.newest_policy()
        if newest is not None and newest.digest == policy.digest:
            return newest
        version = 1 if newest is None else newest.version + 1
        with transaction(self._engine) as connection:
            connection.execute(
                insert(policies).values(
                    version=version,
                    digest=policy.digest,
                    body=policy.canonical().decode(),
                    at=now,
                )
            )
        return PolicyVersion(version=version, digest=policy.digest, policy=policy, at=now)

    def newest_policy(self) -> PolicyVersion | None:
        """Return the policy that the next round will have, None before the first."""
        found = self.policies(last=1)
        return found[0] if found else None

    def policies(self, *, last: int | None = None) -> list[PolicyVersion]:
        """Return the recorded policies, newest first."""
        query = select(policies).order_by(policies.c.version.desc()).limit(last)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return [_policy_version(row.version, row.digest, row.body, row.at) for row in rows]

    def policy(self, digest: str) -> FederationPolicy:
        """Return the recorded policy with that digest.

        Raises:
            UnavailableError: None has it: the database is damaged.
        """
        query = select(policies).where(policies.c.digest == digest).limit(1)
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise UnavailableError(f"the database has no policy {digest[:16]}: restore a backup")
        return _policy_version(row.version, row.digest, row.body, row.at).policy

    # Rounds

    def newest_round(self) -> int | None:
        """Return the number of the newest published checkpoint, None before genesis."""
        with transaction(self._engine) as connection:
            return connection.execute(select(func.max(manifests.c.round))).scalar()

    def newest_event_at(self) -> float:
        """Return when the newest event was recorded, 0 before the first."""
        with transaction(self._engine) as connection:
            return connection.execute(select(func.max(events.c.at))).scalar() or 0.0

    def round_events(self, number: int) -> list[tuple[float, rounds.Event]]:
        """Return the stored events of a round with their times, oldest first."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(events).where(events.c.round == number).order_by(events.c.id)
            ).all()
        return [(row.at, rounds.event_from_json(row.kind, row.body)) for row in rows]

    def record_event(
        self,
        number: int,
        event_: rounds.Event,
        *,
        now: float,
        plan: tuple[int, str, Envelope] | None = None,
        contribution: Receiving | None = None,
        speed: float = 0.0,
        manifest: tuple[str, Envelope] | None = None,
        seal: Seal | None = None,
        attendance: Attendance | None = None,
    ) -> None:
        """Store an event of round `number` with whatever belongs to it, in one transaction.

        The ledger gets an entry of each plan, contribution and manifest.

        Args:
            number: The round.
            event_: What happened.
            now: When.
            plan: Attempt, digest and envelope of the plan that the event opened.
            contribution: What arrived.
            speed: Tokens per second of its inner steps; 0 if unknown.
            manifest: Digest and envelope of what was published.
            seal: Signs a head that covers all of that, if it is shown to members.
            attendance: Of the round that was published.
        """
        kind, body = rounds.event_to_json(event_)
        with self.ledger.recording() as connection:
            connection.execute(insert(events).values(round=number, at=now, kind=kind, body=body))
            if plan is not None:
                attempt, digest, envelope = plan
                connection.execute(
                    insert(plans).values(
                        round=number,
                        attempt=attempt,
                        digest=digest,
                        envelope=to_json(envelope).decode(),
                    )
                )
                entry = Entry(kind=PLAN, round=number, payload_digest=digest)
                self.ledger.append(connection, entry)
            if contribution is not None:
                index = self.ledger.append(connection, contribution.entry)
                stored = contribution.receive(index)
                connection.execute(insert(contributions).values(_contribution_row(stored)))
                if speed > 0:
                    _note_speed(connection, stored.member_id, speed)
            if manifest is not None:
                _insert_manifest(connection, number, *manifest)
                self.ledger.append(connection, entry_of_checkpoint(number, manifest[0]))
            if seal is not None:
                self.ledger.seal(connection, seal)
            if attendance is not None:
                _note_attendance(connection, attendance)
            failpoints.reach("event-uncommitted")

    def add_genesis(self, digest: str, envelope: Envelope, seal: Seal | None = None) -> None:
        """Store the manifest of round 0, the ledger's first entry, under a head that `seal` signs.

        Raises:
            ConfigError: There is one already.
        """
        try:
            with self.ledger.recording() as connection:
                _insert_manifest(connection, 0, digest, envelope)
                self.ledger.append(connection, entry_of_checkpoint(0, digest))
                if seal is not None:
                    self.ledger.seal(connection, seal)
        except IntegrityError as error:
            raise ConfigError("this federation has a genesis already") from error

    def plan(self, number: int, attempt: int | None = None) -> Envelope | None:
        """Return the envelope of a plan, of the last attempt if none is named; None without one."""
        query = select(plans.c.envelope).where(plans.c.round == number)
        if attempt is not None:
            query = query.where(plans.c.attempt == attempt)
        with transaction(self._engine) as connection:
            text = connection.execute(query.order_by(plans.c.attempt.desc()).limit(1)).scalar()
        return None if text is None else from_json(text.encode(), what=f"plan of round {number}")

    def contribution(self, number: int, member_id: str) -> StoredContribution | None:
        """Return a member's contribution to a round, or None."""
        query = (
            select(contributions)
            .where(contributions.c.round == number)
            .where(contributions.c.member_id == member_id)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _stored_contribution(row)

    def contributions(self, number: int) -> list[StoredContribution]:
        """Return the contributions that a round uses, by member id; late ones among them."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(contributions)
                .where(contributions.c.used_round == number)
                .order_by(contributions.c.member_id)
            ).all()
        return [_stored_contribution(row) for row in rows]

    def contributions_before(self, number: int) -> dict[str, int]:
        """Return how many contributions each member made to earlier rounds."""
        query = (
            select(contributions.c.member_id, func.count())
            .where(contributions.c.used_round < number)
            .group_by(contributions.c.member_id)
        )
        with transaction(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    # Exclusions

    def exclude(self, number: int, member_id: str, *, kind: str, reason: str, now: float) -> None:
        """Record that something of a member was left out, and why.

        The same once only, and no more than a few for each round: a member may send nonsense
        without end.
        """
        key = (exclusions.c.round == number) & (exclusions.c.member_id == member_id)
        query = select(exclusions.c.kind, exclusions.c.reason).where(key)
        with self.ledger.recording() as connection:
            known = {(row.kind, row.reason) for row in connection.execute(query)}
            if len(known) < MOST_EXCLUSIONS and (kind, reason) not in known:
                connection.execute(
                    insert(exclusions).values(
                        round=number, member_id=member_id, kind=kind, reason=reason, at=now
                    )
                )
                entry = entry_of_exclusion(number, member_id, kind=kind, reason=reason)
                self.ledger.append(connection, entry)

    def exclusions(self, member_id: str | None = None, *, last: int = 1000) -> list[Exclusion]:
        """Return what was left out, of one member or of all, newest first."""
        query = select(exclusions).order_by(exclusions.c.id.desc()).limit(last)
        if member_id is not None:
            query = query.where(exclusions.c.member_id == member_id)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return [Exclusion(**row._mapping) for row in rows]  # noqa: SLF001

    def answer(self, exclusion_id: int, member_id: str, text: str, *, now: float) -> None:
        """Record what a member says to an exclusion of its own.

        Raises:
            RejectedError: It has no exclusion with that number.
        """
        with transaction(self._engine) as connection:
            done = connection.execute(
                update(exclusions)
                .where(exclusions.c.id == exclusion_id)
                .where(exclusions.c.member_id == member_id)
                .values(answer=text, answered_at=now)
            )
        if done.rowcount != 1:
            raise RejectedError(f"{member_id} has no exclusion with the number {exclusion_id}")

    def lineage(self, last: int | None = None) -> Chain:
        """Return the manifests from genesis to round `last` (or the newest), oldest first.

        They are read when they are looked at.
        """
        newest = self.newest_round()
        length = 0 if newest is None else newest + 1
        return Chain(self._manifests, length if last is None else min(length, last + 1))

    def _manifests(self, begin: int, end: int) -> list[Envelope]:
        """Return the manifests from one round up to, not including, another."""
        query = (
            select(manifests.c.envelope)
            .where((manifests.c.round >= begin) & (manifests.c.round < end))
            .order_by(manifests.c.round)
        )
        with transaction(self._engine) as connection:
            texts = connection.execute(query).scalars().all()
        return [from_json(text.encode(), what="manifest") for text in texts]

    def manifest(self, number: int) -> Envelope | None:
        """Return the manifest of a round, or None."""
        with transaction(self._engine) as connection:
            text = connection.execute(
                select(manifests.c.envelope).where(manifests.c.round == number)
            ).scalar()
        return None if text is None else from_json(text.encode(), what="manifest")

    def round_of(self, manifest_digest: str) -> int | None:
        """Return the round whose manifest has that digest, or None."""
        with transaction(self._engine) as connection:
            return connection.execute(
                select(manifests.c.round).where(manifests.c.digest == manifest_digest)
            ).scalar()

    # Rulings

    def rule(self, number: int, *, is_released: bool, reason: str, now: float) -> None:
        """Record what the operator decides about the candidate of a round.

        Raises:
            ConfigError: That was decided before.
        """
        values = {"round": number, "is_released": int(is_released), "reason": reason, "at": now}
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(rulings).values(values))
        except IntegrityError as error:
            raise ConfigError(f"the operator has decided about round {number} before") from error

    def ruling(self, number: int) -> Ruling | None:
        """Return what the operator has decided about the candidate of a round, or None."""
        query = select(rulings).where(rulings.c.round == number)
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Ruling(bool(row.is_released), row.reason)

    # Evaluations

    def forget_evaluations(self, number: int) -> None:
        """Drop what members said of a candidate that is not published."""
        with transaction(self._engine) as connection:
            connection.execute(delete(evaluations).where(evaluations.c.round == number))

    def add_evaluation(self, evaluation: StoredEvaluation, *, now: float) -> None:
        """Store or replace a member's evaluation of a checkpoint."""
        key = (evaluations.c.round == evaluation.round) & (
            evaluations.c.member_id == evaluation.member_id
        )
        values = {
            "language": evaluation.language,
            "bits_per_byte": evaluation.bits_per_byte,
            "held_out_bytes": evaluation.held_out_bytes,
            "at": now,
        }
        with transaction(self._engine) as connection:
            if connection.execute(update(evaluations).where(key).values(**values)).rowcount == 0:
                connection.execute(
                    insert(evaluations).values(
                        round=evaluation.round, member_id=evaluation.member_id, **values
                    )
                )

    def evaluations(self, *, since: int = 0) -> list[StoredEvaluation]:
        """Return the evaluations of checkpoint `since` and later ones, by round and member."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(evaluations)
                .where(evaluations.c.round >= since)
                .order_by(evaluations.c.round, evaluations.c.member_id)
            ).all()
        return [
            StoredEvaluation(
                round=row.round,
                member_id=row.member_id,
                language=row.language,
                bits_per_byte=row.bits_per_byte,
                held_out_bytes=row.held_out_bytes,
            )
            for row in rows
        ]


def _member(row: Row[Any]) -> Member:
    return Member(**dict(zip(_MEMBER_FIELDS, row, strict=True)))


def _policy_version(version: int, digest: str, body: str, at: float) -> PolicyVersion:
    policy = FederationPolicy.model_validate_json(body)
    if policy.digest != digest:
        raise UnavailableError(
            f"policy {version} is damaged in the database, or was made by another version of "
            "Tapestry: restore a backup"
        )
    return PolicyVersion(version=version, digest=digest, policy=policy, at=at)


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


def _insert_manifest(connection: Connection, number: int, digest: str, envelope: Envelope) -> None:
    connection.execute(
        insert(manifests).values(round=number, digest=digest, envelope=to_json(envelope).decode())
    )


def _note_speed(connection: Connection, member_id: str, speed: float) -> None:
    """Move a member's speed half the way to what it was measured at now."""
    known = members.c.tokens_per_second
    connection.execute(
        update(members)
        .where(members.c.member_id == member_id)
        .values(tokens_per_second=case((known > 0, (known + speed) / 2), else_=speed))
    )


def _note_attendance(connection: Connection, attendance: Attendance) -> None:
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


def _stored_contribution(row: Row[Any]) -> StoredContribution:
    return StoredContribution(
        round=row.round,
        member_id=row.member_id,
        digest=row.digest,
        envelope=from_json(row.envelope.encode(), what="contribution"),
        receipt=from_json(row.receipt.encode(), what="receipt"),
        norm=row.norm,
        signing_key=bytes.fromhex(row.signing_key),
        staleness=row.used_round - row.round,
    )


def _contribution_row(stored: StoredContribution) -> dict[str, Any]:
    return {
        "round": stored.round,
        "member_id": stored.member_id,
        "digest": stored.digest,
        "envelope": to_json(stored.envelope).decode(),
        "receipt": to_json(stored.receipt).decode(),
        "norm": stored.norm,
        "signing_key": stored.signing_key.hex(),
        "used_round": stored.used_round,
    }
