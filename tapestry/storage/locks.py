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
        yield
    finally:
        os.close(descriptor)
