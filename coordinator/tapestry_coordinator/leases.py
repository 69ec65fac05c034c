"""Who leads: one coordinator of several that share a database.

The lease is a row. Its holder raises the beat in it every second and a half; who stands by and sees
the same beat for five seconds, by a clock of its own that no time service moves, takes the lease
with the next higher term. Seconds in which the database did not answer do not count.

A term is what fences: every transaction of a coordinator that leads looks, in its turn, whether the
term is still its own. One that was paused, and goes on after another took over, can write nothing.
"""

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from tapestry.errors import TapestryError, UnavailableError
from tapestry.storage.atomic import boot_id
from tapestry_coordinator.database import open_database, transaction
from tapestry_coordinator.tables import leases

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.5

_log = logging.getLogger(__name__)
_ROW = "leader"


class NotLeadingError(UnavailableError):
    """Another coordinator leads: nothing may be written here, nor anything promised."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One coordinator's folder on one machine, since that was started."""

    name: str
    """For people."""
    identity: str

    @classmethod
    def of(cls, folder: Path) -> "Holder":
        """Return the coordinator in `folder`; the caller holds the folder's lock."""
        name = f"{socket.gethostname()}:{folder}"
        digest = hashlib.sha256(f"{boot_id()}\n{name}".encode()).hexdigest()
        return cls(name=name[:200], identity=digest[:32])


class Lease:
    """What one coordinator knows of the lease, and holds of it."""

    def __init__(
        self, url: str, holder: Holder, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Look at the lease in the database at `url`; nothing is taken yet.

        Raises:
            ConfigError: The database cannot be opened.
            UnavailableError: It does not answer now.
        """
        self._engine = open_database(url)
        self._holder = holder
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._since = 0.0
        self._is_new = True
        self._lost = threading.Event()
        self.term = 0
        """Of ours, while we lead."""
        self.leader = ""
        """Who led when we looked last."""

    @property
    def is_lost(self) -> bool:
        """Whether another coordinator took the lease that was ours."""
        return self._lost.is_set()

    def close(self) -> None:
        """Give the connection back; a lease that is held stays so until it expires."""
        self._engine.dispose()

    def take(self) -> bool:
        """Take the lease if it is free; tell whether it is ours now. To be called again and again.

        It is free if nobody held it yet, its holder gave it back or let it expire, or an earlier
        process of this very folder held it, which has ended.

        Raises:
            UnavailableError: The database does not answer; waiting begins anew.
        """
        try:
            with transaction(self._engine) as connection:
                term = self._taken(connection)
        except UnavailableError:
            self._seen = None
            raise
        self._is_new = False
        if term is None:
            return False
        self.term, self._seen = term, None
        self._lost.clear()
        return True

    def _taken(self, connection: Connection) -> int | None:
        """Take the lease if it is free; return its new term, which counts once it is recorded."""
        row = connection.execute(select(leases).where(leases.c.name == _ROW)).one_or_none()
        if row is None:
            connection.execute(
                insert(leases).values(name=_ROW, holder="", identity="", term=0, beat=0)
            )
        term = 0 if row is None else int(row.term)
        self.leader = "" if row is None else row.holder
        was_ours = self._is_new and row is not None and row.identity == self._holder.identity
        if row is not None and row.identity and not was_ours and not self._has_expired(row):
            return None
        values = {"holder": self._holder.name, "identity": self._holder.identity}
        connection.execute(
            update(leases).where(leases.c.name == _ROW).values(term=term + 1, **values)
        )
        return term + 1

    def _has_expired(self, row: object) -> bool:
        """Whether nobody has renewed it for the time of a lease, as far as we have seen."""
        beat, now = (int(row.term), int(row.beat)), self._clock()  # type: ignore[attr-defined]
        if beat != self._seen:
            self._seen, self._since = beat, now
        return now - self._since >= LEASE_SECONDS

    def renew(self) -> None:
        """Show that we are there.

        Raises:
            NotLeadingError: Another coordinator has taken the lease.
            UnavailableError: The database does not answer now.
        """
        with transaction(self._engine) as connection:
            renewed = connection.execute(
                update(leases)
                .where(leases.c.name == _ROW)
                .where(leases.c.term == self.term)
                .values(beat=leases.c.beat + 1)
            )
        if renewed.rowcount != 1:
            self._lost.set()
            raise NotLeadingError("another coordinator took over; this one stands by")

    def require(self, connection: Connection) -> None:
        """Refuse a transaction of this coordinator if it does not lead any more.

        Raises:
            NotLeadingError: It does not.
        """
        term = connection.execute(select(leases.c.term).where(leases.c.name == _ROW)).scalar()
        if term != self.term:
            self._lost.set()
            raise NotLeadingError("another coordinator of this federation leads now: connect again")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease that was taken while the block runs, and give it back after that."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(ended,), name="lease")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._give_back()

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except NotLeadingError as error:
                _log.warning("%s", error)
                return
            except UnavailableError:
                continue  # said already; who stands by does not count these seconds either

    def _give_back(self) -> None:
        if self.is_lost:
            return
        try:
            with transaction(self._engine) as connection:
                connection.execute(
                    update(leases)
                    .where(leases.c.name == _ROW)
                    .where(leases.c.term == self.term)
                    .values(identity="")
                )
        except TapestryError as error:
            _log.warning("the lease was not given back: %s", error)
