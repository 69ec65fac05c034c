"""The egress ledger: what left this node, when, to whom, and its digest.

Every request passes the interceptor below, and its line is written before the request is sent.
Lines are chained: each holds the SHA-256 of the line before, so that none can be changed or
taken out later without showing.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from tapestry.errors import UntrustedError

FIRST = "0" * 64
_DURABLE_CALLS = ("OpenUpload", "Commit", "Enrol")


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """One request that left."""

    index: int
    """From 0."""
    time: float
    """Unix seconds."""
    to: str
    """host:port."""
    call: str
    """Service and method."""
    bytes: int
    """Length of the request message, of a fragment its data; TLS and HTTP/2 come on top."""
    digest: str
    """SHA-256 of the same."""
    previous: str
    """SHA-256 of the line before; zeros for the first."""


class EgressLedger:
    """Appends to `egress.jsonl`."""

    def __init__(self, path: Path, *, to: str, clock: Callable[[], float]) -> None:
        """Go on where the file ends; a line that a crash cut short is removed."""
        self._to = to
        self._clock = clock
        self._lock = threading.Lock()
        self._index, self._previous = _mend(path)
        self._file = path.open("ab")
        path.chmod(0o600)
        self.bytes_sent = 0
        """Message bytes since this process began."""

    def record(self, call: str, message: bytes) -> None:
        """Write the line of a request that is about to leave."""
        self.record_digest(
            call, size_bytes=len(message), digest=hashlib.sha256(message).hexdigest()
        )

    def record_digest(self, call: str, *, size_bytes: int, digest: str) -> None:
        """Write the line of a request whose SHA-256 is known already."""
        with self._lock:
            departure = Departure(
                index=self._index,
                time=self._clock(),
                to=self._to,
                call=call,
                bytes=size_bytes,
                digest=digest,
                previous=self._previous,
            )
            line = json.dumps(asdict(departure), separators=(",", ":")).encode()
            self._file.write(line + b"\n")
            self._file.flush()
            if call.rsplit("/", 1)[-1] in _DURABLE_CALLS:
                os.fsync(self._file.fileno())
            self._index += 1
            self._previous = hashlib.sha256(line).hexdigest()
            self.bytes_sent += size_bytes

    def close(self) -> None:
        """Make the ledger durable and close it."""
        with self._lock:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()


class EgressInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
):
    """Writes each request into the ledger before it is sent."""

    def __init__(self, ledger: EgressLedger) -> None:
        """Write into `ledger`."""
        self._ledger = ledger

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401
        """Record, then send."""
        self._ledger.record(str(details.method), request.SerializeToString())
        return continuation(details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401
        """Record, then send."""
        self._ledger.record(str(details.method), request.SerializeToString())
        return continuation(details, request)


def read_ledger(path: Path) -> Iterator[Departure]:
    """Yield the departures of a ledger, verifying the chain.

    Raises:
        UntrustedError: A line was changed, added or taken out; the message names it.
    """
    previous = FIRST
    with path.open("rb") as file:
        for index, raw in enumerate(file):
            line = raw.rstrip(b"\n")
            try:
                departure = Departure(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UntrustedError(f"{path}:{index + 1}: not a ledger line: {error}") from error
            if departure.previous != previous or departure.index != index:
                raise UntrustedError(
                    f"{path}:{index + 1}: the chain is broken: this line or one before it was "
                    "changed or taken out"
                )
            previous = hashlib.sha256(line).hexdigest()
            yield departure


def _mend(path: Path) -> tuple[int, str]:
    """Cut an unfinished last line off; return the next index and the digest of the last line."""
    if not path.exists():
        return 0, FIRST
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    if not whole:
        return 0, FIRST
    last = whole.rstrip(b"\n").rsplit(b"\n", 1)[-1]
    return whole.count(b"\n"), hashlib.sha256(last).hexdigest()
