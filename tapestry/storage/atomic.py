"""Write files that are whole or not there: temporary name, fsync, rename, fsync of the folder."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from tapestry.storage.spares import Spares

TEMPORARY_SUFFIX = ".part"


@contextmanager
def replacing(
    path: Path,
    *,
    mode: int = 0o644,
    spares: Spares | None = None,
    durable: bool = True,
    through: Path | None = None,
) -> Iterator[BinaryIO]:
    """Yield a file that takes the name `path` only if the block ends without an error.

    Args:
        path: The final name; its folder must exist.
        mode: Permissions, set before the first byte is written; secrets use 0o600.
        spares: Whose space may be used again; whatever a spare holds after the last byte written
            is cut off.
        durable: Whether to wait for the disk; else a machine that goes down may leave the file
            with any content, and whoever reads it has to compare a digest.
        through: Folder for the temporary name, on the same file system: for files of a folder that
            others may read at any time and in which nothing else may be seen.

    Raises:
        OSError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    name = f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    temporary = (through or path.parent) / name
    is_spare = spares is not None and spares.take(temporary, mode=mode)
    flags = os.O_RDWR if is_spare else os.O_RDWR | os.O_CREAT | os.O_EXCL
    descriptor = os.open(temporary, flags, mode)
    try:
        with open(
            temporary, "r+b" if is_spare else "w+b", opener=lambda _path, _flags: descriptor
        ) as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.truncate()
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_path(path.parent)


def write_atomic(
    path: Path,
    data: bytes | str,
    *,
    mode: int = 0o644,
    durable: bool = True,
    through: Path | None = None,
) -> None:
    """Replace the content of `path` by `data`, whole or not at all; arguments as `replacing`'s."""
    with replacing(path, mode=mode, durable=durable, through=through) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def owned(path: Path) -> Iterator[BinaryIO]:
    """Yield an empty file that only its owner can read; at the end it is on the disk."""
    path.touch(mode=0o600)
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def giving_up(folder: Path) -> Iterator[None]:
    """Remove a folder: its name before the block runs, its files after; never half of them.

    What a crash in between leaves is for `remove_unfinished`.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    folder.rename(temporary)
    yield
    shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what crashes left in `folder` under temporary names; nobody may be writing there."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class RollingSync:
    """Makes a growing file durable while it grows, so that the last fsync has little left to do.

    A thread of its own calls fdatasync; the writer never waits for it.
    """

    def __init__(
        self, file: BinaryIO, *, every_bytes: int = 2**25, every_seconds: float = 0.0
    ) -> None:
        """Follow `file`; the caller goes on writing to it and closes this first.

        Args:
            file: Unbuffered, or flushed by whoever needs `durable_bytes`.
            every_bytes: Sync when so many more were written ...
            every_seconds: ... and so long after the sync before.
        """
        self._descriptor = file.fileno()
        self._every_bytes = every_bytes
        self._every_seconds = every_seconds
        self._written = self._asked = 0
        self._last = time.monotonic()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._running: Future[None] | None = None
        self.durable_bytes = 0
        """Of those that `wrote` was told of, how many a sync that has ended covers."""

    def wrote(self, size: int) -> None:
        """Note that `size` bytes more were handed to the system."""
        self._written += size
        is_idle = self._running is None or self._running.done()
        if is_idle and self._written - self._asked >= self._every_bytes:
            now = time.monotonic()
            if now - self._last >= self._every_seconds:
                self._last, self._asked = now, self._written
                self._running = self._threads.submit(self._sync, self._written)

    def _sync(self, written: int) -> None:
        os.fdatasync(self._descriptor)
        self.durable_bytes = written

    def close(self) -> None:
        """Wait until nothing is under way any more; the caller's own fsync comes after."""
        self._threads.shutdown()


def sync_path(path: Path) -> None:
    """Make the content of a file durable; of a folder, the names in it (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and name below `folder` durable."""
    for path in [*folder.rglob("*"), folder]:
        sync_path(path)


@cache
def boot_id() -> str:
    """Return what is another after the machine went down; where nobody tells, always the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
