"""A file that arrives in order, over a line that may break and in a process that may die.

Its whole space is reserved before the first byte is taken. How much is there stands beside it, in
`NAME.have`: what the process was handed, and what is known to be on the disk, which counts after
the machine itself went down.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tapestry.storage.atomic import RollingSync, boot_id
from tapestry.storage.spares import Spares

_SYNC_SECONDS = 5.0
_SYNC_BYTES = 2**25
_WIDTH = 20
"""Digits of the largest size, so that every record of progress has the same length."""


class ArrivingFile:
    """One file, from wherever an earlier process left it; a context manager."""

    def __init__(self, path: Path, size_bytes: int, *, spares: Spares | None = None) -> None:
        """Reserve `size_bytes` at `path`, or find what is there.

        Raises:
            OSError: The disk is full.
        """
        self.path = path
        self._size = size_bytes
        self._record = path.with_name(f"{path.name}.have")
        self.have = min(self._found(), size_bytes)
        """Bytes that are there, from the beginning on."""
        self._record.write_text(_progress(self.have, self.have), encoding="ascii")
        if not path.is_file() and spares is not None:
            spares.take(path)
        with path.open("ab") as file:
            os.truncate(file.fileno(), min(size_bytes, file.tell()))
            if size_bytes:
                _reserve(file, size_bytes, spares)
        self._resumed_at = self.have
        self._file: BinaryIO = path.open("r+b", buffering=0)
        self._progress: BinaryIO = self._record.open("r+b", buffering=0)
        self._sync = RollingSync(self._file, every_bytes=_SYNC_BYTES, every_seconds=_SYNC_SECONDS)

    def _found(self) -> int:
        """Return how much is there; a file without a record of it is one that was finished."""
        if not self.path.is_file():
            return 0
        size = self.path.stat().st_size
        try:
            have, durable, boot = self._record.read_text(encoding="ascii").split()
            return min(int(have if boot == boot_id() else durable), size)
        except FileNotFoundError:
            return size
        except ValueError:
            return 0

    def read(self, size: int) -> bytes:
        """Return the next bytes of what was there, for hashing; empty at its end."""
        return self._file.read(min(size, self._resumed_at - self._file.tell()))

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            OSError: They are more than was reserved, and the disk is full.
        """
        os.pwrite(self._file.fileno(), data, self.have)
        self.have += len(data)
        self._sync.wrote(len(data))
        durable = self._resumed_at + self._sync.durable_bytes
        os.pwrite(self._progress.fileno(), _progress(self.have, durable).encode("ascii"), 0)

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def finish(self) -> None:
        """Leave the file alone: it is whole. The caller makes it durable, if it must be."""
        os.ftruncate(self._file.fileno(), self._size)
        self._record.unlink()

    def __enter__(self) -> Self:
        """Return it, open."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close; what is there stays for a later call."""
        self._sync.close()
        self._file.close()
        self._progress.close()


def _reserve(file: BinaryIO, size_bytes: int, spares: Spares | None) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError:
        if spares is None:
            raise
        spares.clear()
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def _progress(have: int, durable: int) -> str:
    return f"{have:0{_WIDTH}} {durable:0{_WIDTH}} {boot_id()}\n"
