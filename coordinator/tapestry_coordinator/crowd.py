"""How many connections and files a coordinator's process has open, and may have."""

import logging
import os
import resource
from pathlib import Path

from tapestry.wire.limits import MOST_CONNECTIONS

_log = logging.getLogger(__name__)

_OPEN_FILES = Path("/proc/self/fd")
_PORTS = 2
_OWN_FILES = 2048
"""Database, uploads, checkpoints that are fetched: up to twelve calls of a hundred members."""
_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 300.0


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
