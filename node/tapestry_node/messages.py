"""What the guard and the trainer, two processes of one node, say to each other.

JSON objects over a pair of sockets that has no name, or over files (`shared_line`): `kind` says
what it is. The guard asks one thing at a time; the trainer answers with events and, last, `done` or
`failed`.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from tapestry.data.usage import RoundUse
from tapestry.errors import ConfigError, RejectedError, TapestryError, UntrustedError
from tapestry_node.memory import is_memory_error

MOST_BYTES = 2**24
"""A plan with its statistics; nothing that is a vector goes this way."""

_ERRORS: dict[str, type[TapestryError]] = {
    "config": ConfigError,
    "rejected": RejectedError,
    "untrusted": UntrustedError,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What the trainer says of a contribution that it has written; the guard checks what it can."""

    tokens: int
    steps: int
    documents: int
    """Different ones that were trained on, whole or in part."""
    loss_first: float
    loss_last: float
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    use: RoundUse | None = None
    """What of the corpus was trained on, for the node's own history."""


class Line(Protocol):
    """One end of a pair."""

    def send(self, kind: str, **fields: object) -> None:
        """Say something.

        Raises:
            OSError: The other process is gone.
        """

    def receive(self) -> dict[str, Any]:
        """Wait for the next message.

        Raises:
            EOFError: The other process is gone.
            OSError: The same, or it said more than a message may have.
        """

    def has_more(self) -> bool:
        """Whether a message, or the end, can be received at once."""

    def close(self) -> None:
        """Hang up."""


class SocketLine:
    """One end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        """Take over a socket."""
        self._connection = Connection(end.detach())
        self._sending = threading.Lock()

    def send(self, kind: str, **fields: object) -> None:
        """Say something."""
        data = json.dumps({"kind": kind, **fields}).encode()
        with self._sending:
            self._connection.send_bytes(data)

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        message: dict[str, Any] = json.loads(self._connection.recv_bytes(MOST_BYTES))
        return message

    def has_more(self) -> bool:
        """Whether a message, or the end, can be received at once."""
        return self._connection.poll(0)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class LineHandler(logging.Handler):
    """Sends what would be logged over a line, into the log at its other end."""

    def __init__(self, line: Line) -> None:
        """Send over `line`."""
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record as its text."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        try:
            self._line.send("log", level=record.levelno, text=text)
        except (OSError, ValueError):
            os._exit(1)  # nobody is there to tell


def error_name(error: Exception) -> str:
    """Return what an error is called in a message."""
    if is_memory_error(error):
        return "memory"
    return next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), "os")


def error_named(name: str, text: str) -> Exception:
    """Return an error that the trainer told."""
    kind = _ERRORS.get(name)
    return OSError(text) if kind is None else kind(text)
