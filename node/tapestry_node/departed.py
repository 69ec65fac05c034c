"""What left a node, added up from its egress ledger, for whoever looks again and again.

A long ledger is verified line by line once. What was found is kept in `egress-seen.json` with the
SHA-256 of all the bytes that it was read from: the next look compares that one digest, and verifies
what has come since. A ledger whose earlier bytes have changed is verified from its first line on,
and must still have the head that was seen. Who could forge the file beside the ledger could as well
write the whole chain anew: only a head that was noted elsewhere helps against that
(`tapestry node audit --head`).
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from tapestry.errors import UntrustedError
from tapestry.storage.atomic import write_atomic
from tapestry.wire.egress import BLOCKED, FIRST, Count, Departure, Digest, LedgerFollower
from tapestry_node.home import NodeHome

_DAY_SECONDS = 86_400
_LINES = 20
_MARK_LINES = 10_000
"""New ones that are worth a mark: they take a tenth of a second to verify."""
_READ_BYTES = 2**20

_Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What left this node, by its egress ledger."""

    chain: str
    """`whole`, `broken` or `empty`."""
    problem: str
    head: str
    requests: int
    bytes: int
    today_since: float
    """Unix seconds of the last midnight, UTC."""
    today: dict[str, dict[str, int]]
    """Requests and bytes since then, by call."""
    by_call: dict[str, dict[str, int]]
    """The same of all times."""
    blocked: int
    """Attempts of the trainer to reach a network; none of them left."""
    newest: tuple[Departure, ...]

    @property
    def today_bytes(self) -> int:
        """Of all calls together."""
        return sum(pair["bytes"] for pair in self.today.values())


@dataclass(slots=True)
class _Mark:
    """How far a ledger was verified, and what was in there."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    size_bytes: Count = 0
    digest: str = ""
    """SHA-256 of so many bytes."""
    lines: Count = 0
    head: Digest = FIRST
    calls: dict[str, _Pair] = field(default_factory=dict)
    """Requests and bytes by call."""
    days: dict[int, dict[str, _Pair]] = field(default_factory=dict)
    """The same by days since 1970."""
    blocked: Count = 0
    newest: list[Departure] = field(default_factory=list)


_MARKS = TypeAdapter(_Mark)


class Departed:
    """Follows a ledger; each line is verified once."""

    def __init__(self, ledger: Path, mark: Path, *, mark_lines: int = _MARK_LINES) -> None:
        """Begin where an earlier look has ended, if the ledger still begins as it did then.

        Args:
            ledger: Need not be there yet.
            mark: Where that look is kept.
            mark_lines: New ones that are worth a mark.
        """
        self._path, self._mark_path = ledger, mark
        self._mark_lines = mark_lines
        self._broken = ""
        self._sums = _Mark()
        self._before = _Mark()
        """What was seen earlier and has to be met again."""
        self._met = FIRST
        """Head of this ledger after as many lines."""
        self._follower = LedgerFollower(ledger)
        with suppress(OSError, ValueError):
            found = _MARKS.validate_json(mark.read_bytes())
            self._before = found
            if found.lines and _digest_of(ledger, found.size_bytes) == found.digest:
                self._sums, self._before = found, _Mark()
                self._follower = LedgerFollower(
                    ledger, offset=found.size_bytes, lines=found.lines, head=found.head
                )
        self._marked = self._follower.lines

    def look(self, *, now: float) -> Left:
        """Return what has left until `now`, in Unix seconds."""
        if not self._broken:
            try:
                self._follow()
            except (UntrustedError, OSError) as error:
                self._broken = str(error)
        sums, follower = self._sums, self._follower
        today = int(now // _DAY_SECONDS)
        sums.days = {day: calls for day, calls in sums.days.items() if day >= today}
        if not self._broken and follower.lines - self._marked >= self._mark_lines:
            self._keep()
        whole = "whole" if follower.lines else "empty"
        return Left(
            chain="broken" if self._broken else whole,
            problem=self._broken,
            head=follower.head if follower.lines else FIRST,
            requests=sum(pair[0] for pair in sums.calls.values()),
            bytes=sum(pair[1] for pair in sums.calls.values()),
            today_since=float(today * _DAY_SECONDS),
            today=_pairs(sums.days.get(today, {})),
            by_call=_pairs(sums.calls),
            blocked=sums.blocked,
            newest=tuple(reversed(sums.newest)),
        )

    def _follow(self) -> None:
        """Add what has come.

        Raises:
            UntrustedError: A line is not what follows, or what an earlier look has seen is gone.
        """
        before, follower = self._before, self._follower
        for departure in follower.more():
            self._add(departure)
            if follower.lines == before.lines:
                self._met = follower.head
        if self._met != before.head:
            raise UntrustedError(
                f"{self._path}: an earlier look saw {before.lines:,} lines with the head "
                f"{before.head[:16]}, which are not here any more: the end was cut off, or the "
                "chain written anew; if you have moved the file away yourself, remove "
                f"{self._mark_path}"
            )

    def _add(self, one: Departure) -> None:
        sums = self._sums
        sums.newest = [*sums.newest[1 - _LINES :], one]
        if one.call.startswith(BLOCKED):
            sums.blocked += 1
            return
        call = one.call.rsplit(".", 1)[-1]
        for table in (sums.calls, sums.days.setdefault(int(one.time // _DAY_SECONDS), {})):
            pair = table.setdefault(call, [0, 0])
            pair[0] += 1
            pair[1] += one.bytes

    def _keep(self) -> None:
        """Write down how far the ledger was verified; where that cannot be written, do without."""
        follower, sums = self._follower, self._sums
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what a mark tells of is on the disk before the mark is
            finally:
                os.close(descriptor)
            sums.size_bytes, sums.lines, sums.head = follower.offset, follower.lines, follower.head
            sums.digest = _digest_of(self._path, follower.offset)
            write_atomic(self._mark_path, _MARKS.dump_json(sums), mode=0o600)
            self._marked = follower.lines


def require_whole(home: NodeHome, *, now: float) -> None:
    """Refuse to let anything leave beside a record that proves nothing any more.

    Raises:
        UntrustedError: The chain of the egress ledger is broken; the message names the line.
    """
    left = Departed(home.egress, home.egress_seen).look(now=now)
    if left.chain == "broken":
        files = ", ".join(str(one) for one in (home.egress, home.kernel, home.egress_seen))
        raise UntrustedError(
            f"{left.problem}. Nothing leaves beside a record that proves nothing: find out who "
            f"changed it (`tapestry node audit {home.folder}`), then move {files} elsewhere, keep "
            "them, and start again with a new record"
        )


def _digest_of(path: Path, size: int) -> str:
    """Return the hex SHA-256 of the first bytes of a file; of fewer if it is shorter."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while size > 0 and (data := file.read(min(size, _READ_BYTES))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


def _pairs(calls: dict[str, list[int]]) -> dict[str, dict[str, int]]:
    return {c: {"requests": pair[0], "bytes": pair[1]} for c, pair in sorted(calls.items())}
