"""How many fragments each member may have on their way at once.

Each takes memory here while it comes in: what the line has delivered and nobody has read yet, and
the piece that is being read. So there is a number for all uploads together, which they share
evenly, and none has less than one; if they are more than that, fragments come in pieces. The
answers to `OpenUpload` and `PutFragment` tell each member its share. Calls beyond it are not
refused: they are read when their turn comes, and until then the line itself keeps their bytes back.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tapestry.errors import UnavailableError
from tapestry.wire.limits import FRAGMENT_BYTES, FRAGMENTS_IN_FLIGHT, PIECE_BYTES, UPLOADS_IN_FLIGHT

_IDLE_SECONDS = 30.0
"""An upload of which nothing was heard for so long leaves its share to the others."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What a member may send now."""

    fragments: int
    """In flight at once."""
    piece_bytes: int
    """Of a fragment, in one message."""


_LEAST = Grant(1, PIECE_BYTES)


@dataclass(eq=False, slots=True)
class _Window:
    """One member's calls since it announced its upload."""

    heard_at: float
    is_open: bool
    """Whether it was announced; else it has the least, and takes nothing from others."""
    busy: int = 0
    """Calls that are read."""
    calls: int = 0
    """Those, and the ones that wait for their turn."""


class Windows:
    """Shares out what may be in flight among the uploads that go on."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without uploads."""
        self._clock = clock
        self._changed = threading.Condition()
        self._windows: dict[str, _Window] = {}

    def open(self, member_id: str) -> Grant:
        """Count a member's upload from now on; return its share.

        Calls of its earlier attempts do not count any more: their line may be dead.
        """
        with self._changed:
            self._windows[member_id] = _Window(self._clock(), is_open=True)
            return self._share()

    def close(self, member_id: str) -> None:
        """The member's upload has ended; what it had goes to the others at once."""
        with self._changed:
            self._windows.pop(member_id, None)
            self._changed.notify_all()

    def granted(self, member_id: str) -> Grant:
        """Return what a member may send now."""
        with self._changed:
            return self._granted(self._windows.get(member_id))

    @contextmanager
    def place(self, member_id: str, is_active: Callable[[], bool]) -> Iterator[None]:
        """Hold one of a member's places, and wait until there is one.

        Args:
            member_id: Whose call it is.
            is_active: Whether somebody still waits for the call.

        Raises:
            UnavailableError: Nobody does.
        """
        with self._changed:
            window = self._windows.get(member_id)
            if window is None:
                window = self._windows[member_id] = _Window(self._clock(), is_open=False)
            window.calls += 1
        try:
            with self._turn(window, is_active):
                yield
        finally:
            with self._changed:
                window.calls -= 1
                is_known = self._windows.get(member_id) is window  # else another took its place
                if is_known and not (window.is_open or window.calls):
                    del self._windows[member_id]

    @contextmanager
    def _turn(self, window: _Window, is_active: Callable[[], bool]) -> Iterator[None]:
        """Be one of the calls that are read."""
        with self._changed:
            while window.busy >= self._granted(window).fragments:
                if not is_active():
                    raise UnavailableError("the call was given up while it waited for its turn")
                self._changed.wait(_LOOK_SECONDS)
            window.busy += 1
        try:
            yield
        finally:
            with self._changed:
                window.busy -= 1
                window.heard_at = self._clock()
                self._changed.notify_all()

    def _granted(self, window: _Window | None) -> Grant:
        return _LEAST if window is None or not window.is_open else self._share()

    def _share(self) -> Grant:
        now = self._clock()
        uploads = sum(
            window.is_open and (window.busy > 0 or now - window.heard_at < _IDLE_SECONDS)
            for window in self._windows.values()
        )
        if uploads > FRAGMENTS_IN_FLIGHT:
            return _LEAST
        return Grant(min(UPLOADS_IN_FLIGHT, FRAGMENTS_IN_FLIGHT // max(1, uploads)), FRAGMENT_BYTES)
