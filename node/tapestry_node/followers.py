"""The other processes of one trainer: the first process starts them, asks them, hears them end.

They are children of the trainer's process, in the same namespaces: no network but loopback, no
keys. Each trains its share of every micro-batch (`tapestry.objectives.ranks`). If one ends, the
trainer says so to the guard and ends too; the guard starts another trainer.
"""

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tapestry_node.messages import Line, error_named

_log = logging.getLogger(__name__)

APART = frozenset({"pool", "begin"})
"""What each process does without waiting for the others: all of them refuse alike."""
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.1


class Followers:
    """The processes with ranks from 1 on."""

    def __init__(self, home: Path, count: int, guard: Line, *, report: Any) -> None:  # noqa: ANN401
        """Start them.

        Args:
            home: Of the node.
            count: How many; ranks 1 to `count`.
            guard: To be told if one of them ends.
            report: Called with a call and where to, when one has tried to reach a network.
        """
        self._guard = guard
        self._report = report
        self._losing = threading.Lock()
        self._all = [_Follower(home, rank, self) for rank in range(1, count + 1)]
        self._size = count + 1

    def ask(self, kind: str, **asked: object) -> None:
        """Ask every one of them to do something."""
        for follower in self._all:
            with suppress(OSError):  # its end is being told
                follower.line.send(kind, **asked)

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
            if any(follower.process.poll() is not None for follower in self._all):
                threading.Event().wait()  # whoever hears it ends this process
            time.sleep(_POLL_SECONDS)

    def hear(self, follower: "_Follower") -> None:
        """Take what one of them says, until it ends."""
        failure: dict[str, Any] = {}
        with suppress(EOFError, OSError):
            while True:
                message = follower.line.receive()
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
                code = follower.process.wait()
                error = "memory" if code == -9 else "lost"
                says = (
                    "was killed; mostly that is the system short of memory"
                    if code == -9
                    else f"ended with code {code}"
                )
            error = "lost" if error == "os" else error
            text = f"process {follower.rank} of {self._size} of the trainer: {says}"
            with suppress(OSError):
                self._guard.send("failed", error=error, text=text, kind_of="")
            os._exit(1)


class _Follower:
    """One process, and the thread that hears it."""

    def __init__(self, home: Path, rank: int, owner: Followers) -> None:
        self.rank = rank
        self.answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        ours, theirs = socket.socketpair()
        self.line = Line(ours)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tapestry_node.following", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            close_fds=True,
        )
        theirs.close()
        self.line.send("hello", home=str(home), rank=rank)
        threading.Thread(target=owner.hear, args=(self,), daemon=True).start()
