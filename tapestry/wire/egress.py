"""The egress ledger: what left this node, when, to whom, and its digest.

Every request passes the interceptor below, and its line is written before the request is sent.
Lines are chained: each holds the SHA-256 of the line before, so that none can be changed or taken
out without showing in the lines after it. For the last line somebody must remember its SHA-256, the
ledger's head: `tapestry node audit` prints it, and verifies an older one.
"""

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import grpc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tapestry.checkpoints.statements import predicate_of
from tapestry.errors import UntrustedError
from tapestry.wire.bulk import Pieces, PutFragment

EGRESS_FILE = "egress.jsonl"
BLOCKED = "blocked/"
"""Begins the call of a line about what did not leave: the trainer tried to reach a network."""
FIRST = "0" * 64
_TAIL_BYTES = 4096
_TELL_LINES = 5000
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Unix seconds, to the end of the calendar."""
LINE_CONFIG = ConfigDict(strict=True, extra="forbid")
"""Of lines that are read back: somebody else may have written them."""
_DURABLE_CALLS = ("OpenUpload", "Commit", "Enrol", "Leave")


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """One request that left."""

    __pydantic_config__: ClassVar[ConfigDict] = LINE_CONFIG

    index: Count
    """From 0."""
    time: Moment
    """Unix seconds."""
    to: str
    """host:port."""
    call: str
    """Service and method."""
    bytes: Count
    """Length of the request message, of a fragment its data; TLS and HTTP/2 come on top."""
    digest: Digest
    """SHA-256 of the same."""
    previous: Digest
    """SHA-256 of the line before; zeros for the first."""
    round: Count = 0
    """Of the federation, for what belongs to one."""
    allowed_by: str = ""
    """SHA-256 of the node's policy under which it left, and who approved it where a person must."""


_LINES = TypeAdapter(Departure)


def first_fault(error: ValidationError) -> str:
    """Return what is wrong with a line, in a few words."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join([*(str(part)[:40] for part in first["loc"]), ""]) + f" {first['msg'][:200]}"


class EgressLedger:
    """Appends to `egress.jsonl`; several processes of one node may do so at once."""

    def __init__(self, path: Path, *, to: str, clock: Callable[[], float]) -> None:
        """Go on where the file ends; a line that a crash cut short is removed."""
        self.path = path
        self._to = to
        self._clock = clock
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(self._descriptor, 0o600)
        self._end = _Head(-1, 0, FIRST)
        with self._alone():
            pass
        self.bytes_sent = 0
        """Message bytes since this process began."""
        self.requests_sent = 0
        """Lines of the same."""
        self.allowed_by = ""
        """Goes into every line from now on."""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the file, and know its end, which another process may have moved."""
        with self._lock:
            if self._descriptor < 0:
                raise ValueError("the egress ledger is closed: nothing may leave any more")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                if os.fstat(self._descriptor).st_size != self._end.size_bytes:
                    self._end = _mend(self.path, self._descriptor)
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def record(
        self,
        call: str,
        message: bytes | memoryview,
        *,
        digest: bytes | None = None,
        round_number: int = 0,
        to: str | None = None,
    ) -> None:
        """Write the line of a request that is about to leave, or was kept from leaving.

        Args:
            call: Service and method; `BLOCKED` and a system call for what the trainer tried.
            message: What is entered.
            digest: Its SHA-256, if the caller has it.
            round_number: Of the federation, for what belongs to one.
            to: host:port; None: the coordinator.

        Raises:
            OSError: The disk is full; the ledger is as it was, and the request must not leave.
        """
        digest = digest or hashlib.sha256(message).digest()
        with self._alone():
            departure = Departure(
                index=self._end.lines,
                time=self._clock(),
                to=self._to if to is None else to,
                call=call,
                bytes=len(message),
                digest=digest.hex(),
                previous=self._end.digest,
                round=round_number,
                allowed_by=self.allowed_by,
            )
            line = json.dumps(asdict(departure), separators=(",", ":")).encode()
            self._append(line)
            if call.rsplit("/", 1)[-1] in _DURABLE_CALLS:
                os.fsync(self._descriptor)
            self.bytes_sent += len(message)
            self.requests_sent += 1

    def end(self) -> tuple[int, str]:
        """Return how many lines there are, and the head."""
        with self._alone():
            return self._end.lines, self._end.digest

    def _append(self, line: bytes) -> None:
        """Write a line, whole or not at all."""
        size = self._end.size_bytes + len(line) + 1
        written, failure = 0, OSError(errno.ENOSPC, "no space left for the egress ledger")
        try:
            written = os.write(self._descriptor, line + b"\n")
        except OSError as error:
            failure = error
        if written <= len(line):
            os.ftruncate(self._descriptor, self._end.size_bytes)
            raise failure
        self._end = _Head(size, self._end.lines + 1, hashlib.sha256(line).hexdigest())

    def close(self) -> None:
        """Make the ledger durable and close it."""
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1


class EgressInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Writes each request into the ledger before it is sent."""

    def __init__(self, ledger: EgressLedger) -> None:
        """Write into `ledger`."""
        self._ledger = ledger

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401
        """Record, then send."""
        self._record(details, request)
        return continuation(details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401
        """Record, then send."""
        self._record(details, request)
        return continuation(details, request)

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:  # noqa: ANN401
        """Record a fragment whole, of other streams each message; then send."""
        if isinstance(requests, Pieces):
            self._record(details, requests.fragment)
            return continuation(details, requests)
        return continuation(details, self._recorded(details, requests))

    def _recorded(self, details: Any, requests: Iterator[Any]) -> Iterator[Any]:  # noqa: ANN401
        for request in requests:
            self._record(details, request)
            yield request

    def _record(self, details: Any, request: Any) -> None:  # noqa: ANN401 - any message
        """Enter of a fragment its data, of other messages all."""
        method = str(details.method)
        if isinstance(request, PutFragment):
            self._ledger.record(
                method, request.data, digest=request.digest, round_number=request.round
            )
        else:
            self._ledger.record(
                method, request.SerializeToString(), round_number=_round_of(request)
            )


def _round_of(request: Any) -> int:  # noqa: ANN401 - any message
    """Return the round that a message says it belongs to; 0 if none."""
    if hasattr(request, "contribution"):
        with suppress(ValueError, KeyError, TypeError):
            return int(predicate_of(request.contribution.payload)["round"])
    return int(getattr(request, "round", 0))


def read_ledger(
    path: Path,
    *,
    head: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Iterator[Departure]:
    """Yield the departures of a ledger, verifying the chain.

    Args:
        path: The ledger.
        head: Hex SHA-256 of a line that was once its last: without it, nobody can tell whether
            the end of the file was cut off or written anew.
        on_progress: Told now and then how many bytes were read, of how many.

    Raises:
        UntrustedError: A line was changed, added or taken out; the message names it.
    """
    previous = FIRST
    heads, done = {FIRST}, 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for index, raw in enumerate(file):
            done += len(raw)
            if index % _TELL_LINES == 0:
                on_progress(done, size)
            line = raw.rstrip(b"\n")
            departure = _next(path, line, index=index, previous=previous)
            previous = hashlib.sha256(line).hexdigest()
            if previous == head:
                heads.add(previous)
            yield departure
    if head is not None and head not in heads:
        raise UntrustedError(
            f"{path}: no line has the SHA-256 {head[:16]} that was once the last: the end of the "
            "ledger was cut off or written anew"
        )


class LedgerFollower:
    """Reads a ledger that is being written, verifying the chain; each line once."""

    def __init__(self, path: Path, *, offset: int = 0, lines: int = 0, head: str = FIRST) -> None:
        """Begin at its first line, or behind lines that were verified before.

        Args:
            path: The ledger.
            offset: Bytes of those lines.
            lines: How many they are.
            head: SHA-256 of the last of them.
        """
        self._path = path
        self.offset = offset
        """Bytes that were read."""
        self.lines = lines
        """That were read."""
        self.head = head
        """SHA-256 of the last of them."""

    def more(self) -> Iterator[Departure]:
        """Yield the whole lines that have come since the last time.

        Raises:
            UntrustedError: A line is not what follows, or lines that were read are gone.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            if self.lines:
                raise UntrustedError(f"{self._path}: was removed") from None
            return
        with file:
            if os.fstat(file.fileno()).st_size < self.offset:
                raise UntrustedError(f"{self._path}: was cut off before line {self.lines}")
            file.seek(self.offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # it is being written
                line = raw[:-1]
                departure = _next(self._path, line, index=self.lines, previous=self.head)
                self.offset += len(raw)
                self.lines += 1
                self.head = hashlib.sha256(line).hexdigest()
                yield departure


def _next(path: Path, line: bytes, *, index: int, previous: str) -> Departure:
    """Return what a line says.

    Raises:
        UntrustedError: It does not follow from the line before.
    """
    try:
        departure = _LINES.validate_json(line)
    except ValidationError as error:
        raise UntrustedError(
            f"{path}:{index + 1}: not a ledger line: {first_fault(error)}"
        ) from error
    if departure.index != index:
        raise UntrustedError(
            f"{path}:{index + 1}: the chain is broken: number {departure.index} stands "
            f"where {index} belongs: a line before it was taken out, added or moved"
        )
    if departure.previous != previous:
        raise UntrustedError(
            f"{path}:{index + 1}: the chain is broken: line {index} is not what it was "
            "when this line was written after it; one of the two was changed"
        )
    return departure


def ledger_head(path: Path) -> str:
    """Return the hex SHA-256 of the last whole line; zeros for an empty ledger."""
    last = FIRST
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                last = hashlib.sha256(raw.rstrip(b"\n")).hexdigest()
    return last


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a ledger ends."""

    size_bytes: int
    lines: int
    digest: str


def _mend(path: Path, descriptor: int) -> _Head:
    """Cut an unfinished last line off; return where the ledger ends.

    Raises:
        UntrustedError: The last line is none.
    """
    size = os.fstat(descriptor).st_size
    tail = b""
    while b"\n" not in tail[:-1] and len(tail) < size:
        length = min(size, 2 * len(tail) or _TAIL_BYTES)
        tail = os.pread(descriptor, length, size - length)
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        size -= len(tail) - len(whole)
        os.ftruncate(descriptor, size)
    if not whole:
        return _Head(size, 0, FIRST) if size == 0 else _mend(path, descriptor)
    last = whole[:-1].rsplit(b"\n", 1)[-1]
    try:
        lines = int(json.loads(last)["index"]) + 1
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UntrustedError(
            f"{path}: its last line is not a ledger line: it was changed; keep the file as it is "
            "for whoever looks into it, and move it away before the node runs again"
        ) from error
    return _Head(size, lines, hashlib.sha256(last).hexdigest())
