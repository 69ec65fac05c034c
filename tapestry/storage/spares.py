"""Large files whose space is used again instead of given back.

Every round replaces files of the same size: contributions, spools, checkpoints, optimizer state. To
remove one and write the next costs as much as moving its bytes over the network: the file system
frees and allocates blocks and writes its journal, a disk may be told to trim, and every page is
taken from the system anew. PostgreSQL recycles its log segments for the same reason. A file that
somebody still has open or mapped, or that has a second name, is never used again: whoever reads it
keeps what it reads.
"""

import fcntl
import os
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

_FOLDER = ".spare"


class Spares:
    """Retired files of one kind, in a folder of the same file system as their successors."""

    def __init__(self, home: Path, kind: str) -> None:
        """Keep them below `home`; those that an earlier process left are used first."""
        self._folder = home / _FOLDER
        self._kind = kind
        self._lock = threading.Lock()

    def _held(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._kind}-*"))

    def retire(self, paths: Iterable[Path]) -> None:
        """Take those of `paths` that exist; spares that nobody wanted meanwhile are removed.

        So no more space is held than one round gave back.
        """
        with self._lock:
            self._clear()
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for path in filter(Path.is_file, paths):
                path.replace(self._folder / f"{self._kind}-{secrets.token_hex(4)}")

    def take(self, path: Path, *, mode: int = 0o644) -> bool:
        """Give a spare the name `path`, with whatever it holds; tell whether there was one.

        Args:
            path: In the same file system; must not exist.
            mode: Permissions that the file gets.
        """
        with self._lock:
            for spare in self._held():
                descriptor = os.open(spare, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    is_free = _is_nobody_elses(descriptor)
                    if is_free:
                        os.fchmod(descriptor, mode)
                finally:
                    os.close(descriptor)
                if is_free:
                    spare.rename(path)
                    return True
                spare.unlink()
        return False

    def clear(self) -> None:
        """Remove all; a disk that is full has better use for them."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        for spare in self._held():
            spare.unlink()


def _is_nobody_elses(descriptor: int) -> bool:
    """Whether a file open for writing has one name and is open or mapped nowhere else.

    The system grants a write lease only then (fcntl(2), F_SETLEASE); where there are no leases,
    nobody can tell, and the answer is no.
    """
    if os.fstat(descriptor).st_nlink != 1 or not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
