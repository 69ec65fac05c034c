"""What happened, as members and the database saw it: the checker reads nothing else."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tapestry.identity.envelopes import Envelope, from_json

Row = tuple[object, ...]


@dataclass(frozen=True)
class Told:
    """What a member heard on one of its streams."""

    at: float
    member_id: str
    stream: int
    manifest: Envelope
    plan: Envelope | None
    candidate: Envelope | None = None


@dataclass(frozen=True)
class Acknowledged:
    """A receipt that a member heard."""

    at: float
    member_id: str
    receipt: Envelope


@dataclass(frozen=True)
class Refused:
    """A call that a member was refused."""

    at: float
    member_id: str
    call: str
    reason: str


@dataclass(frozen=True)
class Outage:
    """While the coordinator could not act: it was down, or its database or disk refused.

    By the clock by which its rounds go, as the times of events are.
    """

    began: float
    ended: float
    cause: str


@dataclass(frozen=True)
class Records:
    """The database's tables, read past the product."""

    events: tuple[Row, ...] = ()
    """id, round, at, kind, body."""
    contributions: tuple[Row, ...] = ()
    """round, member_id, digest, envelope, receipt, used_round."""
    plans: tuple[Row, ...] = ()
    """round, attempt, digest, envelope."""
    manifests: tuple[Row, ...] = ()
    """round, digest, envelope."""
    policies: tuple[Row, ...] = ()
    """version, digest, body."""
    rulings: tuple[Row, ...] = ()
    """round, is_released."""
    ledger: tuple[Row, ...] = ()
    """position, entry, payload_digest."""
    heads: tuple[Row, ...] = ()
    """size, note."""

    @classmethod
    def read(cls, database: sqlite3.Connection) -> "Records":
        return cls(
            events=_rows(database, "SELECT id, round, at, kind, body FROM events ORDER BY id"),
            contributions=_rows(
                database,
                "SELECT round, member_id, digest, envelope, receipt, used_round FROM contributions"
                " ORDER BY round, member_id",
            ),
            plans=_rows(
                database, "SELECT round, attempt, digest, envelope FROM plans ORDER BY 1, 2"
            ),
            manifests=_rows(
                database, "SELECT round, digest, envelope FROM manifests ORDER BY round"
            ),
            policies=_rows(database, "SELECT version, digest, body FROM policies ORDER BY 1"),
            rulings=_rows(database, "SELECT round, is_released FROM rulings ORDER BY round"),
            ledger=_rows(database, "SELECT position, entry, payload_digest FROM ledger ORDER BY 1"),
            heads=_rows(database, "SELECT size, note FROM ledger_heads ORDER BY 1"),
        )

    @cached_property
    def lineage(self) -> list[Envelope]:
        return [from_json(str(text).encode(), what="manifest") for _n, _d, text in self.manifests]


def _rows(database: sqlite3.Connection, query: str) -> tuple[Row, ...]:
    return tuple(database.execute(query).fetchall())


@dataclass
class History:
    """One run."""

    seed: int
    coordinator_key: bytes
    target: int
    """Rounds that were asked for."""
    told: list[Told] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    lies: set[str] = field(default_factory=set)
    """Signatures, in hex, of contributions that must never be taken: what one key may not sign,
    another may."""
    outages: list[Outage] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    """When each event was recorded, in seconds that pass, whatever the coordinator's clocks say."""
    lives: list[int] = field(default_factory=list)
    """How many events there were when each of the coordinator's processes began."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """From when to when the operator had paused the federation."""
    adopted: list[tuple[float, str]] = field(default_factory=list)
    """When policies were agreed upon, and their digests."""
    departures: list[tuple[float, str]] = field(default_factory=list)
    """When members were revoked."""
    logs: list[tuple[Row, ...]] = field(default_factory=list)
    """The events at every crash and at the end."""
    ledgers: list[tuple[Row, ...]] = field(default_factory=list)
    """The ledger's entries at the same moments."""
    healed_at: float = 0.0
    """By the coordinator's clock: since when nothing went wrong any more, and a quorum of honest
    members was there."""
    ended_at: float = 0.0
    """The same."""
    slack_seconds: float = 0.0
    """That a round may take after healing, but for its deadline."""
    records: Records = field(default_factory=Records)
    recomputed: Mapping[int, bytes] = field(default_factory=dict)
    """Payloads of manifests made again elsewhere, by round."""
