"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapestry.errors import ConfigError

_LOCK_FILE = ".lock"


@contextmanager
def alone(folder: Path, *, who: str) -> Iterator[None]:
    """Keep a second process out of `folder` while the block runs; the lock dies with its process.

    Args:
        folder: Must exist.
        who: Begins the refusal, such as "this node".

    Raises:
        ConfigError: Another process is in there.
    """
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"{folder}: {who} runs already in another process; stop that first"
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """Return the number of the process that is in `folder` alone; None: nobody is.

    Looks without keeping anybody out: the lock is only tried if the process that last had it lives.
    """
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        said = os.read(descriptor, 32).strip()
        process = int(said) if said.isdigit() else 0
        if not process or not _lives(process):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return process
        return None
    finally:
        os.close(descriptor)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
