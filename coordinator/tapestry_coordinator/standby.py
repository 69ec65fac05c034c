"""Several coordinators of one federation: one leads, the others stand by.

Each has a folder of its own with the same `ca/`, `identity/` and settings; they share a PostgreSQL
database, which says who leads, and a store of blobs. Whoever stands by fetches new checkpoints,
so that little is left to do when it takes over, and listens only from then on.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

from tapestry.errors import TapestryError, UnavailableError
from tapestry_coordinator.database import database_url, is_shared, shown_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.leases import Holder, Lease
from tapestry_coordinator.mirroring import Mirror, blobs_of
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.server import CoordinatorServer

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.1
_LOOK_SECONDS = 0.5
_FOLLOW_SECONDS = 3.0
_RETRY_SECONDS = 3.0


def serve_home(home: CoordinatorHome) -> None:
    """Serve the federation in `home` until SIGINT or SIGTERM; stand by while another leads.

    Args:
        home: No other process may be in there: the caller holds its lock.

    Raises:
        ConfigError: A port is in use, or something in the folder or the database is wrong.
    """
    if is_shared(database_url(home)):
        Standby(home).run()
    else:
        CoordinatorServer(home).serve()


class Standby:
    """One of the coordinators that share a database."""

    def __init__(self, home: CoordinatorHome) -> None:
        """Nothing is opened yet."""
        self._home = home
        self._url = database_url(home)
        self._is_asked = False
        """Whether to stop; no lock is in it, which the thread that a signal interrupts may hold."""
        self._server: CoordinatorServer | None = None

    def run(self) -> None:
        """Lead or stand by, in turns, until SIGINT or SIGTERM.

        Raises:
            ConfigError: A port is in use, or something in the folder or the database is wrong.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        lease = self._opened()
        if lease is None:
            return
        with closing(lease):
            while self._wait_for(lease):
                with lease.kept():
                    self._lead(lease)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked = True
        if self._server is not None:
            self._server.stop()

    def _rest(self, seconds: float) -> None:
        """Wait, unless we are to stop."""
        deadline = time.monotonic() + seconds
        while not self._is_asked and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)

    def _opened(self) -> Lease | None:
        """Connect to the database, which may come up later than we; None if we are to stop."""
        while not self._is_asked:
            try:
                return Lease(self._url, Holder.of(self._home.folder))
            except UnavailableError as error:
                _log.error("%s: %s", shown_url(self._url), error)
                self._rest(_RETRY_SECONDS)
        return None

    def _wait_for(self, lease: Lease) -> bool:
        """Stand by until the lease is ours; tell whether it is, or we are to stop."""
        told = None
        with self._following():
            while not self._is_asked:
                try:
                    if lease.take():
                        _log.info("leading, term %d", lease.term)
                        return True
                    if lease.leader != told:
                        told = lease.leader
                        _log.info("standing by: %s leads", told)
                except UnavailableError as error:
                    if told != str(error):
                        told = str(error)
                        _log.warning("standing by: %s", error)
                self._rest(_LOOK_SECONDS)
        return False

    def _lead(self, lease: Lease) -> None:
        """Serve until we are to stop or lose the lease."""
        try:
            self._server = CoordinatorServer(self._home, lease=lease)
            if not self._is_asked:
                self._server.serve()
        except (UnavailableError, OSError) as error:
            _log.error("cannot lead: %s; tried again in %.0f s", error, _RETRY_SECONDS)
            self._rest(_RETRY_SECONDS)
        finally:
            self._server = None

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Fetch new checkpoints in a thread while the block runs."""
        blobs = blobs_of(self._home)
        if blobs is None:
            yield
            return
        ended = threading.Event()
        mirror = Mirror(self._home, blobs)
        thread = threading.Thread(target=self._follow, args=(mirror, ended), name="follow")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _follow(self, mirror: Mirror, ended: threading.Event) -> None:
        told, registry = "", None
        while not ended.wait(_FOLLOW_SECONDS):
            try:
                registry = registry or Registry(self._url)
                lineage = registry.lineage()
                mirror.bring_founding(lineage[0])
                mirror.bring_checkpoint(len(lineage) - 1, lineage[-1])
                told = ""
            except (TapestryError, OSError) as error:
                if told != str(error):
                    told = str(error)
                    _log.warning("standing by, not up to date: %s", error)
        if registry is not None:
            registry.close()
