"""The federation's ledger as the coordinator keeps it: rows that only come, and their tree.

Entries are appended in the transaction that records what they speak of, so that the two are there
together or not at all, and their numbers have no gaps. The tree over them lies in memory and is
made again from the rows after a restart or a failover: the same entries give the same head, to the
bit. A head is signed and stored in the transaction that opens a plan or publishes a checkpoint.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Select, bindparam, func, insert, select

from tapestry.checkpoints.manifest import Lineage
from tapestry.errors import RejectedError
from tapestry.ledger.entries import (
    CHECKPOINT,
    CONTRIBUTION,
    EXCLUSION,
    MEMBER,
    Entry,
    exclusion_digest,
)
from tapestry.ledger.folder import LedgerFolder
from tapestry.ledger.heads import Head, SignedHead, origin_of, sign_head
from tapestry.ledger.merkle import Tree, leaf_hash
from tapestry.ledger.proof import write_proof
from tapestry.ledger.witness import Growth
from tapestry_coordinator.tables import ledger, ledger_cosignatures, ledger_heads

_NEXT_HEADS = 6
"""Among which the best one for a proof is looked for: those of about three rounds."""

Seal = Callable[[int, bytes], str]
"""From size and root to the note of a signed head."""


def seal_of(key: Ed25519PrivateKey, *, federation: str, genesis_digest: str) -> Seal:
    """Return what signs the heads of a federation's ledger."""
    origin = origin_of(federation, genesis_digest)
    return lambda size, root: sign_head(Head(origin, size, root), key).body


def ledger_origin(genesis: Lineage) -> str:
    """Return the name of a federation's ledger."""
    return origin_of(genesis.origin.federation, genesis.genesis_digest)


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A signed head, with the cosignatures that came."""

    size: int
    signed: str
    """The note, with the coordinator's signature alone."""
    lines: tuple[str, ...] = ()
    """Cosignatures, by member id."""

    @property
    def note(self) -> str:
        """The note with all cosignatures below it."""
        return self.signed + "".join(f"{line}\n" for line in self.lines)

    def announced(self, witnesses: int) -> str:
        """Return the note with as many cosignatures as are asked for: members hear it often."""
        return self.signed + "".join(f"{line}\n" for line in self.lines[:witnesses])


class Ledger:
    """The entries and heads of one ledger; the tree over the entries, as the database has them."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        """Begin with nothing in memory; `begin` begins a transaction."""
        self._begin = begin
        self._tree = Tree()
        self._lock = threading.RLock()

    # Writing, in the transaction of what is recorded

    @contextmanager
    def recording(self) -> Iterator[Connection]:
        """Begin a transaction that may append; what it appended is forgotten if it fails."""
        with self._lock:
            size = self._tree.size
            try:
                with self._begin() as connection:
                    yield connection
            except BaseException:
                self._tree.truncate(min(size, self._tree.size))
                raise

    def append(self, connection: Connection, entry: Entry) -> int:
        """Add an entry within `recording`; return its number, from 0."""
        self._catch_up(connection)
        leaf = entry.leaf()
        position = self._tree.append(leaf)
        connection.execute(
            insert(ledger).values(
                position=position, entry=leaf.decode(), payload_digest=entry.payload_digest
            )
        )
        return position

    def seal(self, connection: Connection, seal: Seal) -> None:
        """Sign a head over everything there is, within `recording`, unless there is one."""
        size = self._catch_up(connection)
        query = select(ledger_heads.c.size).where(ledger_heads.c.size == size)
        if size and connection.execute(query).first() is None:
            note = seal(size, self._tree.root())
            connection.execute(insert(ledger_heads).values(size=size, note=note))

    def have_head(self, seal: Seal) -> None:
        """Sign a head if there is none: the entries are of what an older version recorded."""
        with self.recording() as connection:
            if connection.execute(select(ledger_heads.c.size).limit(1)).first() is None:
                self.seal(connection, seal)

    def cosign(self, size: int, member_id: str, line: str) -> bool:
        """Keep a member's cosignature of a head; tell whether it is its first."""
        key = (ledger_cosignatures.c.size == size) & (ledger_cosignatures.c.member_id == member_id)
        with self._begin() as connection:
            if connection.execute(select(ledger_cosignatures.c.size).where(key)).first():
                return False
            row = {"size": size, "member_id": member_id, "line": line}
            connection.execute(insert(ledger_cosignatures).values(row))
            return True

    # Reading

    def head(self, size: int | None = None) -> StoredHead | None:
        """Return the newest head, or that of just so many entries; None if there is none."""
        query = select(ledger_heads).order_by(ledger_heads.c.size.desc())
        if size is not None:
            query = query.where(ledger_heads.c.size == size)
        with self._begin() as connection:
            found = _read_heads(connection, query.limit(1))
        return found[0] if found else None

    def head_above(self, index: int) -> StoredHead | None:
        """Return a head that covers an entry: of the first few the one that most have cosigned.

        Members that were told of the next head at once have cosigned that.
        """
        query = select(ledger_heads).where(ledger_heads.c.size > index)
        with self._begin() as connection:
            found = _read_heads(connection, query.order_by(ledger_heads.c.size).limit(_NEXT_HEADS))
        return max(found, key=lambda head: len(head.lines), default=None)

    def entries(self, begin: int, end: int) -> list[bytes]:
        """Return the entries from one number up to, not including, another."""
        with self._begin() as connection:
            return _read_entries(connection, begin, end)

    def index_of(self, payload_digest: str) -> int | None:
        """Return the number of the first entry about a statement, None if there is none."""
        with self._begin() as connection:
            return _index_of(connection, payload_digest)

    def growth(self, old: int, new: int) -> Growth:
        """Return the proof that the ledger of `new` entries follows from that of `old`.

        Raises:
            RejectedError: No head has so many.
        """
        with self._read() as (connection, tree):
            _require_sealed(connection, new)
            if old > new:
                raise RejectedError(f"a ledger of {new:,} entries does not follow from {old:,}")
            return Growth(tree.root(old), tree.consistency(old, new))

    def path(self, index: int, size: int) -> list[bytes]:
        """Return the proof that an entry is in the ledger of `size` entries.

        Raises:
            RejectedError: No head has so many, or it is not among them.
        """
        with self._read() as (connection, tree):
            _require_sealed(connection, size)
            if index >= size:
                raise RejectedError(f"entry {index:,} is not among the first {size:,}")
            return tree.inclusion(index, size)

    def write(self, folder: LedgerFolder, head: SignedHead) -> None:
        """Write the static files up to a head.

        Raises:
            OSError: The disk is full; the head before is as it was.
        """
        with self._read() as (connection, tree):
            folder.write(tree, lambda b, e: _read_entries(connection, b, e), head)

    def proof(self, payload_digest: str, head: SignedHead) -> bytes | None:
        """Return the file that proves a statement's entry under a head; None if that has none."""
        with self._read() as (connection, tree):
            index = _index_of(connection, payload_digest)
            if index is None or index >= head.head.size:
                return None
            (leaf,) = _read_entries(connection, index, index + 1)
            return write_proof(tree, leaf=leaf, index=index, head=head)

    @contextmanager
    def _read(self) -> Iterator[tuple[Connection, Tree]]:
        with self.recording() as connection:
            self._catch_up(connection)
            yield connection, self._tree

    def _catch_up(self, connection: Connection) -> int:
        """Have the tree of all entries in the database; return how many there are.

        Another coordinator may have appended some, or have led when our last one was refused.
        """
        newest = connection.execute(select(func.max(ledger.c.position))).scalar()
        count = 0 if newest is None else int(newest) + 1
        known = self._tree.size
        if known > count or (known and not self._is_ours(connection, known)):
            self._tree.truncate(0)
        if self._tree.size < count:
            query = (
                select(ledger.c.entry)
                .where(ledger.c.position >= self._tree.size)
                .order_by(ledger.c.position)
            )
            for text in connection.execute(query).scalars():
                self._tree.append(text.encode())
        return count

    def _is_ours(self, connection: Connection, size: int) -> bool:
        query = select(ledger.c.entry).where(ledger.c.position == size - 1)
        last = connection.execute(query).scalar()
        return last is not None and leaf_hash(last.encode()) == self._tree.subtree(0, size - 1)


def _read_entries(connection: Connection, begin: int, end: int) -> list[bytes]:
    query = (
        select(ledger.c.entry)
        .where((ledger.c.position >= begin) & (ledger.c.position < end))
        .order_by(ledger.c.position)
    )
    return [text.encode() for text in connection.execute(query).scalars()]


def _index_of(connection: Connection, payload_digest: str) -> int | None:
    query = select(func.min(ledger.c.position)).where(ledger.c.payload_digest == payload_digest)
    found = connection.execute(query).scalar()
    return None if found is None else int(found)


def _read_heads(connection: Connection, query: Select[Any]) -> list[StoredHead]:
    """Return heads with all their cosignatures."""
    return [
        StoredHead(
            row.size, row.note, tuple(connection.execute(_LINES, {"of": row.size}).scalars())
        )
        for row in connection.execute(query).all()
    ]


_LINES = (
    select(ledger_cosignatures.c.line)
    .where(ledger_cosignatures.c.size == bindparam("of"))
    .order_by(ledger_cosignatures.c.member_id)
)


def _require_sealed(connection: Connection, size: int) -> None:
    has = connection.execute(select(func.max(ledger_heads.c.size))).scalar() or 0
    if size > has:
        raise RejectedError(f"{size:,} entries: the newest head of the ledger has {has:,}")


def entry_of_checkpoint(number: int, digest: str) -> Entry:
    """Return what the ledger says of a published manifest."""
    return Entry(kind=CHECKPOINT, round=number, payload_digest=digest)


def entry_of_contribution(number: int, member_id: str, digest: str) -> Entry:
    """Return what the ledger says of a contribution, under the round that it answers."""
    return Entry(kind=CONTRIBUTION, round=number, payload_digest=digest, member_id=member_id)


def entry_of_member(member_id: str, signing_key: bytes) -> Entry:
    """Return what the ledger says of somebody who joined: with which key it signs."""
    digest = hashlib.sha256(signing_key).hexdigest()
    return Entry(kind=MEMBER, round=0, payload_digest=digest, member_id=member_id)


def entry_of_exclusion(number: int, member_id: str, *, kind: str, reason: str) -> Entry:
    """Return what the ledger says of what was left out."""
    digest = exclusion_digest(round_number=number, member_id=member_id, kind=kind, reason=reason)
    return Entry(kind=EXCLUSION, round=number, payload_digest=digest, member_id=member_id)
