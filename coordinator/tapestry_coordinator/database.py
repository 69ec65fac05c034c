"""The database under the registry: opened, brought up to date, and one transaction at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError

from tapestry.errors import ConfigError, UnavailableError


def database_url(folder: Path) -> str:
    """Return the URL of the database file in a coordinator's folder."""
    return f"sqlite:///{folder / 'coordinator.db'}"


def open_database(url: str) -> Engine:
    """Connect to the database at `url` and bring its schema up to date.

    Raises:
        ConfigError: It cannot be opened, or a newer version made it.
    """
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine)
    except DatabaseError as error:
        raise ConfigError(f"{url}: the database cannot be opened: {error.orig}") from error
    except CommandError as error:
        raise ConfigError(
            f"{url}: the database was made by a newer version of Tapestry ({error}): update this "
            "one, or restore a backup"
        ) from error
    return engine


def open_to_read(url: str) -> Engine:
    """Connect to the database at `url` for somebody who only reads: no lock, no new schema."""
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
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
    except (OperationalError, InterfaceError) as error:
        raise UnavailableError(
            f"the coordinator's database cannot be used now: {error.orig}"
        ) from error


def _migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _tune_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - any DB-API driver
    """Write-ahead log, durable commits, and patience with other writers."""
    connection.isolation_level = None  # transactions are begun by us
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
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
