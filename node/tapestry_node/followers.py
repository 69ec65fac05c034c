"""The other processes of one trainer: the first process asks them, and hears them end.

Mostly it starts them itself: children in the same namespaces, no network but loopback, no keys. Or
a launcher started all of them (`launched`). Each trains its share of every micro-batch
(`tapestry.objectives.ranks`). If one ends, the trainer says so to the guard and ends too; the guard
has another trainer started.
"""

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tapestry_node.messages import Line, SocketLine, error_named

_log = logging.getLogger(__name__)

APART = frozenset({"pool", "begin"})
"""What each process does without waiting for the others: all of them refuse alike."""
RENDEZVOUS = "trainer/.rendezvous"
"""Where the processes of one trainer find each other, in the node's folder."""
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class Other(Protocol):
    """A process with a rank from 1 on."""

    line: Line

    def is_ending(self) -> bool:
        """Whether it is known to have ended."""

    def end(self) -> tuple[str, str]:
        """Return, of a process that has hung up, what kind of error that is, and what it did."""


class Followers:
    """The processes with ranks from 1 on."""

    def __init__(
        self, others: Sequence[Other], guard: Line, *, report: Callable[[str, str], None]
    ) -> None:
        """Hear them.

        Args:
            others: By rank.
            guard: To be told if one of them ends.
            report: Called with a call and where to, when one has tried to reach a network.
        """
        self._guard = guard
        self._report = report
        self._losing = threading.Lock()
        self._all = [_Follower(rank, other) for rank, other in enumerate(others, 1)]
        self._size = len(others) + 1
        for follower in self._all:
            threading.Thread(target=self._hear, args=(follower,), daemon=True).start()

    def ask(self, kind: str, **asked: object) -> None:
        """Ask every one of them to do something."""
        for follower in self._all:
            with suppress(OSError):  # its end is being told
                follower.other.line.send(kind, **asked)

    def answers(self) -> None:
        """Wait until each has done it.

        Raises:
            TapestryError: One has refused.
        """
        failures = [follower.answers.get() for follower in self._all]
        for failure in filter(None, failures):
            raise failure

    def settle(self) -> None:
        """After an error: if one of them is ending, wait until that has been told."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            if any(follower.other.is_ending() for follower in self._all):
                threading.Event().wait()  # whoever hears it ends this process
            time.sleep(_POLL_SECONDS)

    def hush(self) -> None:
        """Take it from here on as no news if they end."""
        self._losing.acquire()

    def _hear(self, follower: "_Follower") -> None:
        """Take what one of them says, until it ends."""
        failure: dict[str, Any] = {}
        with suppress(EOFError, OSError):
            while True:
                message = follower.other.line.receive()
                kind = message["kind"]
                if kind == "log":
                    _log.log(message["level"], "process %d: %s", follower.rank, message["text"])
                elif kind == "blocked":
                    self._report(message["call"], message["to"])
                elif kind == "failed" and message["at"] not in APART:
                    failure = message
                    break
                else:
                    is_failed = kind == "failed"
                    follower.answers.put(
                        error_named(message["error"], message["text"]) if is_failed else None
                    )
        self._lose(follower, failure)

    def _lose(self, follower: "_Follower", failure: dict[str, Any]) -> None:
        """Tell the guard that a process has ended, and end."""
        with self._losing:
            if failure:
                error, says = failure["error"], failure["text"]
            else:
                error, says = follower.other.end()
            error = "lost" if error == "os" else error
            text = f"process {follower.rank} of {self._size} of the trainer: {says}"
            with suppress(OSError):
                self._guard.send("failed", error=error, text=text, kind_of="")
            os._exit(1)


class _Follower:
    """One process, and what it has answered."""

    def __init__(self, rank: int, other: Other) -> None:
        self.rank = rank
        self.other = other
        self.answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()


class ChildFollower:
    """A process that this one has started."""

    def __init__(self, home: Path, rank: int, size: int) -> None:
        """Start it.

        Args:
            home: Of the node.
            rank: From 1.
            size: How many processes there are.
        """
        ours, theirs = socket.socketpair()
        self.line: Line = SocketLine(ours)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tapestry_node.following", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            close_fds=True,
        )
        theirs.close()
        self.line.send("hello", home=str(home), rank=rank, size=size)

    def is_ending(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def end(self) -> tuple[str, str]:
        """Wait for its end; return what kind of error that is, and what it did."""
        code = self._process.wait()
        if code == -9:
            return "memory", "was killed; mostly that is the system short of memory"
        return "lost", f"ended with code {code}"
