"""Write files that are whole or not there: temporary name, fsync, rename, fsync of the folder."""

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".part"


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file that takes the name `path` only if the block ends without an error.

    Args:
        path: The final name; its folder must exist.
        mode: Permissions, set before the first byte is written; secrets use 0o600.

    Raises:
        OSError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace the content of `path` by `data`, whole or not at all."""
    with replacing(path, mode=mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


class RollingSync:
    """Makes a growing file durable while it grows, so that the last fsync has little left to do.

    A thread of its own calls fdatasync whenever another `every_bytes` were written; the writer
    never waits for it.
    """

    def __init__(self, file: BinaryIO, *, every_bytes: int = 2**25) -> None:
        """Follow `file`; the caller goes on writing to it and closes this first."""
        self._descriptor = file.fileno()
        self._every = every_bytes
        self._pending = 0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._running: Future[None] | None = None

    def wrote(self, size: int) -> None:
        """Note that `size` bytes more were handed to the system."""
        self._pending += size
        if self._pending >= self._every and (self._running is None or self._running.done()):
            self._pending = 0
            self._running = self._threads.submit(os.fdatasync, self._descriptor)

    def close(self) -> None:
        """Wait until nothing is under way any more; the caller's own fsync comes after."""
        self._threads.shutdown()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (fsync of the directory itself)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
