"""Who crowds the ports and is refused, and how many files the process may have open."""

import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tapestry.wire.limits import MOST_CONNECTIONS

_log = logging.getLogger(__name__)

_OPEN_FILES = Path("/proc/self/fd")
_PORTS = 2
_OWN_FILES = 2048
"""Database, uploads, checkpoints that are fetched: up to twelve calls of a hundred members."""
_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 300.0
_MOST_REASONS = 1000
"""Remembered at once: one for each member, and more than a federation has of those."""


def allow_files() -> None:
    """Let this process open as many files as its limits on connections presume.

    Often a process may open 1024 unless it asks for more, and a coordinator whose connections
    have taken them all cannot open its database.
    """
    needed = _PORTS * MOST_CONNECTIONS + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning(
            "this process may open %d files, and should be allowed %d: raise its limit "
            "(LimitNOFILE of a systemd unit, ulimit -n)",
            allowed,
            needed,
        )


class Crowd:
    """Tells the operator when strangers crowd the ports."""

    def __init__(self) -> None:
        """Begin to look."""
        self._looked = self._told = float("-inf")

    def look(self, now: float) -> None:
        """Count what is open, every few seconds; `now` is monotonic."""
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            count = len(os.listdir(_OPEN_FILES))  # noqa: PTH208 - only their number
        except OSError:
            return
        if count > MOST_CONNECTIONS and now - self._told >= _AGAIN_SECONDS:
            self._told = now
            _log.warning(
                "%d connections and files are open, of %d connections to a port that are taken; "
                "others are refused until some end",
                count,
                MOST_CONNECTIONS,
            )


class Refusals:
    """Logs who is refused and why: each once in five minutes, however often it calls."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody refused."""
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def note(self, reason: str, *, peer: str) -> None:
        """Log a refusal, unless the same was logged a little while ago."""
        now = self._clock()
        with self._lock:
            if now - self._told.get(reason, float("-inf")) < _AGAIN_SECONDS:
                return
            if len(self._told) >= _MOST_REASONS:
                self._told.clear()
            self._told[reason] = now
        _log.warning("refused %s: %s", peer, reason)
