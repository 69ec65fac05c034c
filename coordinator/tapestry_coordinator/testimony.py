"""What members and operators say of what was done, as the registry has it.

What was left out of a member's, and what it answers; what members measured of a checkpoint; what
the operator ruled about a candidate.
"""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from tapestry.errors import ConfigError, RejectedError
from tapestry_coordinator.book import Book
from tapestry_coordinator.database import transaction
from tapestry_coordinator.ledgering import entry_of_exclusion
from tapestry_coordinator.tables import evaluations, exclusions, rulings

MOST_EXCLUSIONS = 20
"""On record of one member in one round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvaluation:
    """What a member measured of a published checkpoint."""

    round: int
    member_id: str
    language: str
    bits_per_byte: float
    held_out_bytes: int


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


class Testimony(Book):
    """Exclusions and the answers to them, evaluations, rulings."""

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
