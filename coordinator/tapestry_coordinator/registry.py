"""The registry: everything a coordinator must remember, in one SQL database.

Every method is one transaction. The caller passes `now`; nothing here reads a clock.
"""

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope, from_json, to_json
from tapestry.ledger.entries import PLAN, Entry
from tapestry_coordinator import failpoints
from tapestry_coordinator.chain import Chain
from tapestry_coordinator.database import transaction
from tapestry_coordinator.events import Event, event_from_json, event_to_json
from tapestry_coordinator.ledgering import Seal, entry_of_checkpoint
from tapestry_coordinator.policy_history import PolicyHistory
from tapestry_coordinator.receiving import Receiving, StoredContribution
from tapestry_coordinator.roster import Attendance, Roster, note_attendance, note_speed
from tapestry_coordinator.tables import contributions, events, manifests, plans
from tapestry_coordinator.testimony import Testimony


class Registry(Roster, PolicyHistory, Testimony):
    """Members, policies, testimony; plans, events, contributions and manifests of all rounds."""

    def newest_round(self) -> int | None:
        """Return the number of the newest published checkpoint, None before genesis."""
        with transaction(self._engine) as connection:
            return connection.execute(select(func.max(manifests.c.round))).scalar()

    def newest_event_at(self) -> float:
        """Return when the newest event was recorded, 0 before the first."""
        with transaction(self._engine) as connection:
            return connection.execute(select(func.max(events.c.at))).scalar() or 0.0

    def round_events(self, number: int) -> list[tuple[float, Event]]:
        """Return the stored events of a round with their times, oldest first."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(events).where(events.c.round == number).order_by(events.c.id)
            ).all()
        return [(row.at, event_from_json(row.kind, row.body)) for row in rows]

    def record_event(
        self,
        number: int,
        event: Event,
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
            event: What happened.
            now: When.
            plan: Attempt, digest and envelope of the plan that the event opened.
            contribution: What arrived.
            speed: Tokens per second of its inner steps; 0 if unknown.
            manifest: Digest and envelope of what was published.
            seal: Signs a head that covers all of that, if it is shown to members.
            attendance: Of the round that was published.
        """
        kind, body = event_to_json(event)
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
                    note_speed(connection, stored.member_id, speed)
            if manifest is not None:
                _insert_manifest(connection, number, *manifest)
                self.ledger.append(connection, entry_of_checkpoint(number, manifest[0]))
            if seal is not None:
                self.ledger.seal(connection, seal)
            if attendance is not None:
                note_attendance(connection, attendance)
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


def _insert_manifest(connection: Connection, number: int, digest: str, envelope: Envelope) -> None:
    connection.execute(
        insert(manifests).values(round=number, digest=digest, envelope=to_json(envelope).decode())
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
