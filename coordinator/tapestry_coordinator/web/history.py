"""What the registry holds, read once and summed up by round.

A manifest names every member of its round, so a thousand of them are megabytes: each is parsed
once, newest first and a few at a time, and only numbers are kept. The page reads and never writes.
"""

import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import predicate_of
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import from_json
from tapestry_coordinator.database import transaction
from tapestry_coordinator.tables import contributions, evaluations, manifests, members, policies
from tapestry_coordinator.web.measured import Language, Measured

ROUNDS_AT_ONCE = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something that happened to a member in a round, and why."""

    round: int
    at: float
    member_id: str
    kind: str
    """excluded, absent or dissent."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What the page shows of one checkpoint."""

    number: int
    digest: str
    parent: str | None
    created_at: float
    size_bytes: int
    policy: str = ""
    """Digest of the federation's policy; empty for genesis."""
    weights: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    loss: float | None = None
    """Mean of the members' training losses at the end of their steps, by tokens."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRow:
    """A row of the members' table."""

    member_id: str
    status: str
    joined_at: float
    last_seen_at: float


@dataclass(kw_only=True, slots=True)
class Totals:
    """Over all rounds, by member."""

    parts: Counter[str] = field(default_factory=Counter)
    """Rounds with a part."""
    weights: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Added up."""


class History:
    """Rounds, evaluations and members, as far as they were read."""

    def __init__(self, engine: Engine) -> None:
        """Read from `engine`, which is open for reading only."""
        self._engine = engine
        self._lock = threading.Lock()
        self._rounds: dict[int, RoundSummary] = {}
        self._measured = Measured()
        self._totals = Totals()
        self._tolerances: dict[str, float] = {}
        """By a policy's digest: how much worse a checkpoint may be for a member's text."""
        self._newest: int | None = None
        self._members: list[MemberRow] = []
        self._to_read: list[int] = []
        self.version = 0
        """Counts what changed."""

    def refresh(self) -> bool:
        """Read what is new, a few rounds at most; tell whether there is more.

        Raises:
            UnavailableError: The database does not answer.
        """
        with transaction(self._engine) as connection:
            found = _members(connection)
            newest = connection.execute(select(func.max(manifests.c.round))).scalar()
            measured = _measured(connection, self._measured.until)
            self._tolerances |= _tolerances(connection, self._tolerances)
            known = -1 if self._newest is None else self._newest
            last = -1 if newest is None else newest
            to_read = [*range(last, known, -1), *self._to_read]
            now, later = to_read[:ROUNDS_AT_ONCE], to_read[ROUNDS_AT_ONCE:]
            read = list(_summaries(connection, now))
        with self._lock:
            changed = self._measured.take(measured) or bool(read)
            self._members = found
            for summary in read:
                self._take_round(summary)
            self._newest, self._to_read = newest, later
            self.version += changed
        return bool(later)

    def _take_round(self, summary: RoundSummary) -> None:
        self._rounds[summary.number] = summary
        self._totals.parts.update(summary.weights.keys())
        for member_id, weight in summary.weights.items():
            self._totals.weights[member_id] += weight

    @property
    def is_complete(self) -> bool:
        """Whether all rounds were read."""
        return self._newest is not None and not self._to_read

    @property
    def rounds(self) -> list[RoundSummary]:
        """What was read, oldest first."""
        with self._lock:
            return [self._rounds[number] for number in sorted(self._rounds)]

    @property
    def newest(self) -> RoundSummary | None:
        """The newest checkpoint."""
        with self._lock:
            return None if self._newest is None else self._rounds.get(self._newest)

    def round(self, number: int) -> RoundSummary | None:
        """One checkpoint, if it was read."""
        with self._lock:
            return self._rounds.get(number)

    @property
    def members(self) -> list[MemberRow]:
        """All members, by id."""
        with self._lock:
            return list(self._members)

    def languages(self) -> list[Language]:
        """What was measured, by language; those with most members first."""
        with self._lock:
            return self._measured.languages()

    def means(self) -> dict[int, float]:
        """Bits per byte by round, the mean over all members."""
        with self._lock:
            return self._measured.means()

    def gain(self) -> float | None:
        """Return by how much the newest checkpoint is better, for those who measured both."""
        with self._lock:
            return self._measured.gain()

    def spoken(self) -> dict[str, str]:
        """What each member called its text last."""
        with self._lock:
            return self._measured.spoken()

    def totals(self) -> Totals:
        """What each member gave, over all rounds."""
        with self._lock:
            return Totals(parts=self._totals.parts.copy(), weights=self._totals.weights.copy())

    def notes(self) -> list[Note]:
        """Exclusions, absences and dissent, newest first."""
        with self._lock:
            worse = self._measured.worse()
            return [
                note
                for number in sorted(self._rounds, reverse=True)
                for note in (
                    *self._dissent(self._rounds[number], worse.get(number, ())),
                    *self._rounds[number].notes,
                )
            ]

    def _dissent(
        self, summary: RoundSummary, worse: Iterable[tuple[str, str, float]]
    ) -> Iterator[Note]:
        """Yield the members whose text the checkpoint does worse on than the policy accepts."""
        tolerance = self._tolerances.get(summary.policy, math.inf)
        for member_id, language, by in worse:
            if by > tolerance:
                yield Note(
                    round=summary.number,
                    at=summary.created_at,
                    member_id=member_id,
                    kind="dissent",
                    reason=f"{language or 'its text'}: {by:.4f} bits per byte worse than the "
                    f"checkpoint before; the policy accepts {tolerance:g}",
                )


def _members(connection: Connection) -> list[MemberRow]:
    columns = (members.c.member_id, members.c.status, members.c.joined_at, members.c.last_seen_at)
    rows = connection.execute(select(*columns).order_by(members.c.member_id)).all()
    return [
        MemberRow(
            member_id=row.member_id,
            status=row.status,
            joined_at=row.joined_at,
            last_seen_at=row.last_seen_at,
        )
        for row in rows
    ]


def _measured(connection: Connection, since: float) -> list[Any]:
    columns = (
        evaluations.c.round,
        evaluations.c.member_id,
        evaluations.c.language,
        evaluations.c.bits_per_byte,
        evaluations.c.held_out_bytes,
        evaluations.c.at,
    )
    return list(connection.execute(select(*columns).where(evaluations.c.at >= since)).all())


def _tolerances(connection: Connection, known: Container[str]) -> dict[str, float]:
    """Return by how much a checkpoint may be worse, of policies that are not `known`."""
    rows = connection.execute(select(policies.c.digest, policies.c.body)).all()
    return {
        row.digest: FederationPolicy.model_validate_json(row.body).no_harm.max_worse
        for row in rows
        if row.digest not in known
    }


def _summaries(connection: Connection, numbers: list[int]) -> Iterator[RoundSummary]:
    if not numbers:
        return
    found = connection.execute(
        select(manifests.c.round, manifests.c.digest, manifests.c.envelope).where(
            manifests.c.round.in_(numbers)
        )
    ).all()
    losses = _losses(connection, numbers)
    for row in found:
        try:
            payload = from_json(row.envelope.encode(), what="manifest").payload
            manifest = Manifest.parsed(payload, what=f"manifest of round {row.round}")
        except UntrustedError as error:
            _log.error("%s; the page leaves it out", error)
        else:
            yield _summary(manifest, row.digest, losses.get(row.round))


def _losses(connection: Connection, numbers: list[int]) -> dict[int, float]:
    """Return the members' mean loss of each round, by tokens."""
    rows = connection.execute(
        select(contributions.c.round, contributions.c.envelope).where(
            contributions.c.round.in_(numbers)
        )
    ).all()
    sums: dict[int, list[float]] = {}
    for row in rows:
        payload = predicate_of(from_json(row.envelope.encode(), what="contribution").payload)
        loss, tokens = payload.get("metrics", {}).get("loss_last"), payload.get("tokens", 0)
        if loss is not None and tokens:
            total = sums.setdefault(row.round, [0.0, 0.0])
            total[0] += loss * tokens
            total[1] += tokens
    return {number: total / tokens for number, (total, tokens) in sums.items()}


def _summary(manifest: Manifest, digest: str, loss: float | None) -> RoundSummary:
    made = manifest.made
    size = sum(entry.size_bytes for entry in manifest.files)
    if made is None:
        return RoundSummary(
            number=manifest.round,
            digest=digest,
            parent=manifest.parent,
            created_at=manifest.created_at,
            size_bytes=size,
        )
    excluded = [(p.member_id, "excluded", p.reason) for p in made.participation if p.reason]
    absent = [(a.member_id, "absent", a.reason) for a in made.absent]
    return RoundSummary(
        number=manifest.round,
        digest=digest,
        parent=manifest.parent,
        created_at=manifest.created_at,
        size_bytes=size,
        policy=made.policy,
        weights={p.member_id: p.weight for p in made.participation},
        tokens=sum(p.tokens for p in made.participation),
        loss=loss,
        notes=tuple(
            Note(
                round=manifest.round,
                at=manifest.created_at,
                member_id=member_id,
                kind=kind,
                reason=reason,
            )
            for member_id, kind, reason in [*excluded, *absent]
        ),
    )
