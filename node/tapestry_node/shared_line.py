"""A `messages.Line` between hosts that have nothing in common but a folder.

Each end appends JSON lines to a file of its own and reads the other's, opened anew each time. It
touches its file now and then: an end whose file is left alone for long is gone. Nothing listens.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tapestry_node.messages import MOST_BYTES

GUARD_FILE, NEWEST_FILE = "guard.json", "newest.json"
GUARD, TRAINER = "guard", "trainer"
"""Begin the names of the files that they write."""
BEAT_SECONDS = 2.0
SILENT_SECONDS = 120.0
"""A file system that fails over takes a minute."""
_NEXT, _END, _OVER = "next", "end", "over"
_FILE_BYTES = 2**22
"""Then another file is begun, and this one is removed by whoever has read it."""
_SOONEST_SECONDS, _LATEST_SECONDS = 0.005, 0.25


class Pulse:
    """Whether somebody goes on touching a file; only this host's clock is asked."""

    def __init__(self, path: Path, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Watch `path`, which need not be there yet."""
        self.path = path
        self._silent = silent_seconds
        self._seen = 0
        self._since = time.monotonic()
        self.beats = -1
        """Different times seen, less the first."""

    def is_gone(self) -> bool:
        """Whether it was left alone for too long."""
        seen = 0
        with suppress(OSError):
            seen = self.path.stat().st_mtime_ns
        if seen not in (0, self._seen):
            self._seen, self._since = seen, time.monotonic()
            self.beats += 1
        return time.monotonic() - self._since > self._silent


class Heart:
    """Touches a file until it is stopped or this process ends."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """Begin; `path` says which file, each time."""
        self._path = path
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path())

    def stop(self) -> None:
        """Touch it no more."""
        self._stopped.set()


class SharedLine:
    """One end of a pair."""

    def __init__(
        self,
        folder: Path,
        *,
        own: str,
        other: str,
        is_over: Callable[[], bool] = lambda: False,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """Begin to write.

        Args:
            folder: Of the pair; both ends see it.
            own: Begins the names of the files that this end writes.
            other: The same of the other end.
            is_over: Whether the other end is known to be gone in another way.
            silent_seconds: After which it is taken to be gone.

        Raises:
            FileExistsError: There is an end of this name already.
        """
        self._folder, self._own, self._other = folder, own, other
        self._is_over = is_over
        self._silent = silent_seconds
        self._sending = threading.Lock()
        self._writes = self._written = 0
        self._reads = self._offset = 0
        self._rest = b""
        self._ready: list[dict[str, Any]] = []
        self._descriptor = self._begin()
        self._pulse = Pulse(self._name(other, 0), silent_seconds=silent_seconds)
        self._heart = Heart(lambda: self._name(self._own, self._writes))
        self.was_ended = False
        """Whether the other end has said that there is nothing more to do."""

    def send(self, kind: str, **fields: object) -> None:
        """Say something.

        Raises:
            OSError: The disk is full, or this end was closed.
        """
        data = json.dumps({"kind": kind, **fields}).encode() + b"\n"
        with self._sending:
            if self._descriptor < 0:
                raise BrokenPipeError("this end was closed")
            if self._written > _FILE_BYTES:
                self._go_on()
            self._append(data)

    def receive(self) -> dict[str, Any]:
        """Wait for the next message.

        Raises:
            EOFError: The other end is gone.
            OSError: It said more than a message may have.
        """
        pause = _SOONEST_SECONDS
        while not self._ready and not self._pull():
            is_gone = self._is_over() or self._pulse.is_gone()
            if is_gone and not self._pull():  # it may have said why just before
                raise EOFError("the other end is gone")
            time.sleep(pause)
            pause = min(2 * pause, _LATEST_SECONDS)
        message = self._ready[0]
        if message["kind"] in (_END, _OVER):
            self.was_ended = message["kind"] == _END
            raise EOFError("the other end has hung up")
        return self._ready.pop(0)

    def has_more(self) -> bool:
        """Whether a message, or the end, can be received at once."""
        return bool(self._ready) or self._pull() or self._is_over()

    def close(self, *, goes_on: bool = False) -> None:
        """Hang up.

        Args:
            goes_on: Whether the other end shall try again, with somebody else.
        """
        self._heart.stop()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # no lock: a signal may have come while something is sent
                last = {"kind": _OVER if goes_on else _END}
                os.write(descriptor, json.dumps(last).encode() + b"\n")
            os.close(descriptor)

    def _name(self, who: str, number: int) -> Path:
        return self._folder / f"{who}-{number:06}.jsonl"

    def _begin(self) -> int:
        """Make the file to write next; one that lies there, or a link, is not ours."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(self._name(self._own, self._writes), flags, 0o600)

    def _go_on(self) -> None:
        """Write into another file from now on."""
        self._writes += 1
        old, self._descriptor = self._descriptor, self._begin()
        os.write(old, json.dumps({"kind": _NEXT}).encode() + b"\n")
        os.close(old)
        self._written = 0

    def _append(self, data: bytes) -> None:
        """Write a line; where that fails, nothing can follow it."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self.close(goes_on=True)
            raise
        self._written += len(data)

    def _pull(self) -> bool:
        """Take what has come; return whether there is a message."""
        path = self._name(self._other, self._reads)
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(MOST_BYTES)
        except FileNotFoundError:
            return False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MOST_BYTES:
            raise OSError(f"{path}: a message of more than {MOST_BYTES:,} bytes")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if message["kind"] == _NEXT:
                path.unlink(missing_ok=True)
                self._reads, self._offset = self._reads + 1, 0
                following = self._name(self._other, self._reads)
                self._pulse = Pulse(following, silent_seconds=self._silent)
                return bool(self._ready) or self._pull()
            self._ready.append(message)
        return bool(self._ready)
