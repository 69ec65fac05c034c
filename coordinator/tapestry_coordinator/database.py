"""The database under the registry: opened, brought up to date, and one transaction at a time.

SQLite in the coordinator's folder, or PostgreSQL. Transactions take turns on both: on SQLite they
begin for writing, on PostgreSQL they hold one advisory lock. So what a transaction has read still
holds when it writes, whatever else runs, and every statement means the same on both.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DatabaseError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tapestry.errors import ConfigError, UnavailableError
from tapestry_coordinator.home import CoordinatorHome

DATABASE_FILE = "coordinator.db"

_log = logging.getLogger(__name__)
_TURN_KEY = 0x7A9E57
"""Of the advisory lock; whoever else uses the same database has other keys."""
_PATIENCE_SECONDS = 10
_MOST_CHECKED_BYTES = 64 * 2**20
_COMPLAINT_SECONDS = 10.0
_POSTGRES = {
    "application_name": "tapestry",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    # A process that was stopped in the middle of its turn must not keep the others waiting.
    "options": f"-c idle_in_transaction_session_timeout=5s -c lock_timeout={_PATIENCE_SECONDS}s",
}


def database_url(home: CoordinatorHome) -> str:
    """Return the URL of a coordinator's database, as its settings say."""
    return home.load_settings().storage.database or sqlite_url(home.folder)


def sqlite_url(folder: Path) -> str:
    """Return the URL of the database file in a coordinator's folder."""
    return f"sqlite:///{folder / DATABASE_FILE}"


def is_shared(url: str) -> bool:
    """Whether coordinators of several folders can use the database at `url`."""
    return not url.startswith("sqlite")


def shown_url(url: str) -> str:
    """Return a database's URL for people: without a password."""
    parsed = make_url(url)
    hidden = [key for key in parsed.query if "password" in key]
    return parsed.difference_update_query(hidden).render_as_string(hide_password=True)


def open_database(url: str) -> Engine:
    """Connect to the database at `url` and bring its schema up to date.

    Raises:
        ConfigError: It cannot be opened, is damaged, or a newer version made it.
        UnavailableError: A server does not answer now.
    """
    engine = _engine(url)
    try:
        with transaction(engine) as connection:
            _migrate(connection)
    except UnavailableError as error:
        if is_shared(url):
            raise
        raise ConfigError(f"{shown_url(url)}: the database cannot be opened: {error}") from error
    except DatabaseError as error:
        raise ConfigError(
            f"{shown_url(url)}: the database cannot be opened: {_cause(error)}"
        ) from error
    except CommandError as error:
        raise ConfigError(
            f"{shown_url(url)}: the database was made by a newer version of Tapestry ({error}): "
            "update this one, or restore a backup"
        ) from error
    return engine


def require_sound(engine: Engine) -> None:
    """Look through a database file before it is served; a server looks after its own.

    A large one would keep a restart waiting for seconds: damage there is named when it is read.

    Raises:
        ConfigError: It is damaged.
    """
    if engine.dialect.name != "sqlite":
        return
    if Path(engine.url.database or "").stat().st_size > _MOST_CHECKED_BYTES:
        return
    try:
        with engine.begin() as connection:
            found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    except DatabaseError as error:
        found = _cause(error)
    if found != "ok":
        raise ConfigError(f"{engine.url.database}: {_DAMAGED}: {' '.join(found.split())}")


_DAMAGED = (
    "the database file is damaged; stop everything that uses it, put it aside with its -wal and "
    "-shm files, and restore a backup"
)


def open_to_read(url: str) -> Engine:
    """Connect to the database at `url` for somebody who only reads: no lock, no new schema."""
    if is_shared(url):
        engine = _postgres(url)
    else:
        engine = create_engine(url)
        event.listen(engine, "connect", _only_read_sqlite)
    return engine.execution_options(postgresql_readonly=True)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction that ends with the block.

    Raises:
        UnavailableError: The database does not take it now: its disk is full, or it is gone.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError, InternalError, PoolTimeoutError) as error:
        raise UnavailableError(_unavailable(engine, error)) from error
    except DatabaseError as error:
        if _is_damage(error):
            raise UnavailableError(f"{engine.url.database}: {_DAMAGED}") from error
        raise


def at_every_turn(engine: Engine, check: Callable[[Connection], None]) -> None:
    """Let `check` look at the database when a transaction has its turn, and refuse it by raising.

    What it saw holds until the transaction has ended.
    """
    event.listen(engine, "begin", check)


def _engine(url: str) -> Engine:
    if not is_shared(url):
        engine = create_engine(url)
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = _postgres(url)
    event.listen(engine, "begin", _begin_postgres)
    return engine


def _postgres(url: str) -> Engine:
    given = make_url(url).query
    arguments = {key: value for key, value in _POSTGRES.items() if key not in given}
    try:
        return create_engine(
            url, connect_args=arguments, pool_timeout=_PATIENCE_SECONDS, pool_recycle=3600
        )
    except ImportError as error:
        raise ConfigError(
            f"{shown_url(url)}: PostgreSQL needs psycopg: pip install 'tapestry-fl[postgres]'"
        ) from error


def _migrate(connection: Connection) -> None:
    """Bring the schema to the newest revision."""
    if connection.dialect.name == "postgresql":  # it reads files between two statements
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '60s'")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _tune_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - any DB-API driver
    """Write-ahead log, durable commits, and patience with other writers."""
    connection.isolation_level = None  # transactions are begun by us
    cursor = connection.cursor()
    patience = f"busy_timeout={_PATIENCE_SECONDS * 1000}"
    for pragma in ("journal_mode=WAL", "synchronous=FULL", patience):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _only_read_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - any DB-API driver
    """Refuse to write; a reader of a write-ahead log waits for nobody and keeps nobody waiting."""
    cursor = connection.cursor()
    for pragma in ("query_only=ON", "busy_timeout=2000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Begin for writing: the driver begins late, and never before a change of the schema."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_postgres(connection: Connection) -> None:
    """Wait for our turn; statements after this one see all that was committed before."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN_KEY})")


# What is said when it does not work


class _Complaints:
    """A server's own words, for the operator's log alone, and not once for every call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = -_COMPLAINT_SECONDS

    def log(self, engine: Engine, cause: str) -> None:
        """Write one line, unless another was written a moment ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < _COMPLAINT_SECONDS:
                return
            self._last = now
        _log.warning("%s: %s", shown_url(str(engine.url)), cause)


_complaints = _Complaints()


def _unavailable(engine: Engine, error: Exception) -> str:
    """Return what a member may read, who sees neither hosts nor users of a server."""
    if engine.dialect.name == "sqlite":
        return f"the coordinator's database cannot be used now: {_cause(error)}"
    _complaints.log(engine, _cause(error).replace(engine.url.password or "\0", "***"))
    return "the coordinator's database does not answer now: everything goes on when it does"


def _is_damage(error: DatabaseError) -> bool:
    return any(words in str(error.orig) for words in ("malformed", "not a database"))


def _cause(error: Exception) -> str:
    """Return the first line of what the driver said."""
    said = getattr(error, "orig", None) or error
    return (str(said).splitlines() or [type(said).__name__])[0]
