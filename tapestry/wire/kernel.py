"""What the kernel says that this process has sent, beside what the egress ledger says.

Linux counts the bytes of every TCP connection (`TCP_INFO`). While a node's process is connected it
looks at its own sockets, twice a second, and writes what it saw into `egress-kernel.jsonl`: at the
start, each minute, after each contribution, and at the end. Each line names the ledger's head of
that moment and the SHA-256 of the line before. Another system, or an old kernel, is written down
as what cannot be known.

A connection that came and went between two looks, and what a broken one sent after the last look,
is not counted: the figure can be too small, and never too large.
"""

import fcntl
import hashlib
import json
import os
import secrets
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tapestry.errors import UntrustedError
from tapestry.wire.egress import (
    FIRST,
    LINE_CONFIG,
    Count,
    Digest,
    EgressLedger,
    Moment,
    first_fault,
)

KERNEL_FILE = "egress-kernel.jsonl"
_LOOK_SECONDS = 0.5
_WRITE_SECONDS = 60.0
_STATE, _BYTES_RECEIVED, _BYTES_SENT, _BYTES_RETRANS, _LENGTH = 0, 128, 200, 208, 216
"""Offsets into `struct tcp_info` (linux/tcp.h), to which fields are only ever appended."""
_ESTABLISHED, _CLOSED, _LISTENING = 1, 7, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A line: what one process has sent by then, by the kernel and by the ledger."""

    __pydantic_config__: ClassVar[ConfigDict] = LINE_CONFIG

    index: Count
    """From 0."""
    time: Moment
    """Unix seconds."""
    session: str
    """Random; the lines of one process have the same."""
    event: str
    """`begin`, `look`, `end`, or `unavailable` where the kernel does not say."""
    connections: Count
    """Opened by this process, so far."""
    sent: Count
    """Bytes of those, TLS and HTTP/2 included, without what had to be sent again."""
    received: Count
    sent_to: dict[str, Count]
    """The same by where to."""
    served: Count
    """Bytes of connections that others opened to this process; a node has none but on loopback."""
    requests: Count
    """That this process wrote into the ledger, so far."""
    messages: Count
    """Their bytes."""
    ledger_lines: Count
    """Of the whole ledger, at that moment."""
    ledger_head: Digest
    previous: Digest
    """SHA-256 of the line before; zeros for the first."""


_LINES = TypeAdapter(Seen)


@dataclass(slots=True)
class _Connection:
    peer: str
    sent: int = 0
    received: int = 0
    is_served: bool = False


@dataclass(slots=True)
class _Totals:
    connections: int = 0
    sent: int = 0
    received: int = 0
    served: int = 0
    sent_to: dict[str, int] = field(default_factory=dict)


def obstacle() -> str:
    """Return why the kernel's count cannot be had here; empty if it can."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} does not tell a process what its sockets sent"
    with socket.socket() as any_socket:
        try:
            length = len(any_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512))
        except OSError as error:
            return f"TCP_INFO: {error.strerror}"
    return "" if length >= _LENGTH else "this kernel is older than Linux 4.19"


class KernelCount:
    """Looks at the sockets of this process while it is connected."""

    def __init__(self, ledger: EgressLedger, *, clock: Callable[[], float]) -> None:
        """Write beside `ledger`, which this process writes into."""
        self._ledger = ledger
        self._path = ledger.path.with_name(KERNEL_FILE)
        self._clock = clock
        self._session = secrets.token_hex(8)
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kernel-count", daemon=True)
        self._is_available = not obstacle()

    def start(self) -> None:
        """Begin; connections that are open already count whole."""
        self.note("begin" if self._is_available else "unavailable")
        if self._is_available:
            self._thread.start()

    def stop(self) -> None:
        """Write the last line; to be called before connections are closed."""
        if self._is_available and self._thread.is_alive():
            self._stopping.set()
            self._thread.join()
            self.note("end")

    def note(self, event: str = "look") -> None:
        """Look, and write a line. A full disk is no reason to stop: the audit sees the gap."""
        if event == "look" and not self._is_available:
            return
        self.look()
        with self._lock, suppress(OSError):
            _append(self._path, self._seen(event))

    def look(self) -> None:
        """Read the counters of every TCP socket of this process."""
        if not self._is_available:
            return
        with self._lock:
            listening: set[int] = set()
            found: list[tuple[int, _Connection, int]] = []
            for number in _descriptors():
                with suppress(OSError):
                    _look_at(number, found, listening)
            for inode, connection, port in found:
                known = self._connections.get(inode)
                if known is None or known.peer != connection.peer:
                    connection.is_served = port in listening
                    self._forget(inode)
                    self._connections[inode] = connection
                else:
                    known.sent = max(known.sent, connection.sent)
                    known.received = max(known.received, connection.received)

    def _forget(self, inode: int) -> None:
        """Keep what a past connection sent when the system uses its number again."""
        if inode in self._connections:
            self._connections[-len(self._connections) - 1] = self._connections.pop(inode)

    def _totals(self) -> _Totals:
        totals = _Totals()
        for connection in self._connections.values():
            if connection.is_served:
                totals.served += connection.sent
                continue
            totals.connections += 1
            totals.sent += connection.sent
            totals.received += connection.received
            by_peer = totals.sent_to
            by_peer[connection.peer] = by_peer.get(connection.peer, 0) + connection.sent
        return totals

    def _seen(self, event: str) -> Seen:
        """Return what is known; the ledger is asked last, as it is written before anything left."""
        totals = asdict(self._totals())
        lines, head = self._ledger.end()
        return Seen(
            index=0,
            time=self._clock(),
            session=self._session,
            event=event,
            requests=self._ledger.requests_sent,
            messages=self._ledger.bytes_sent,
            ledger_lines=lines,
            ledger_head=head,
            previous=FIRST,
            **totals,
        )

    def _watch(self) -> None:
        looks, every = 0, int(_WRITE_SECONDS / _LOOK_SECONDS)
        while not self._stopping.wait(_LOOK_SECONDS):
            looks += 1
            if looks % every == 0:
                self.note()
            else:
                self.look()


@contextmanager
def counted(ledger: EgressLedger, *, clock: Callable[[], float]) -> Iterator[KernelCount]:
    """Count what leaves during the block; connections must be closed after it."""
    count = KernelCount(ledger, clock=clock)
    count.start()
    try:
        yield count
    finally:
        count.stop()


def _descriptors() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names only
    return list(range(1024))


def _look_at(number: int, found: list[tuple[int, _Connection, int]], listening: set[int]) -> None:
    """Enter what a descriptor is, if it is a TCP socket; it stays as it is."""
    status = os.fstat(number)
    if not stat.S_ISSOCK(status.st_mode):
        return
    borrowed = socket.socket(fileno=number)
    try:
        if borrowed.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
        state, port = info[_STATE], borrowed.getsockname()[1]
        if state == _LISTENING:
            listening.add(port)
            return
        sent, again = struct.unpack_from("QQ", info, _BYTES_SENT)
        (received,) = struct.unpack_from("Q", info, _BYTES_RECEIVED)
        if state == _CLOSED and not sent:
            return
        host, peer_port = borrowed.getpeername()[:2]
    finally:
        borrowed.detach()
    peer = f"{host.removeprefix('::ffff:')}:{peer_port}"
    connection = _Connection(peer=peer, sent=sent - again, received=received)
    found.append((status.st_ino, connection, port))


def _append(path: Path, seen: Seen) -> None:
    """Write a line after the last, which another process of this node may have written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        lines = os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\n")
        if lines[-1]:  # a crash cut it short
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - len(lines[-1]))
        whole = lines[:-1]
        previous = hashlib.sha256(whole[-1]).hexdigest() if whole else FIRST
        table = {**asdict(seen), "index": len(whole), "previous": previous}
        os.write(descriptor, json.dumps(table, separators=(",", ":")).encode() + b"\n")
    finally:
        os.close(descriptor)


def read_kernel(path: Path) -> Iterator[Seen]:
    """Yield the lines of a record, verifying the chain.

    Raises:
        UntrustedError: A line was changed, added or taken out; the message names it.
    """
    previous = FIRST
    with path.open("rb") as file:
        for index, raw in enumerate(file):
            if not raw.endswith(b"\n"):
                return  # unfinished: its writer was killed, or is at it
            line = raw.rstrip(b"\n")
            try:
                seen = _LINES.validate_json(line)
            except ValidationError as error:
                raise UntrustedError(
                    f"{path}:{index + 1}: not a line of ours: {first_fault(error)}"
                ) from error
            if seen.previous != previous or seen.index != index:
                raise UntrustedError(
                    f"{path}:{index + 1}: the chain is broken: this line or one before it was "
                    "changed or taken out"
                )
            previous = hashlib.sha256(line).hexdigest()
            yield seen
