"""The database and the ledger over what is recorded in it: what the registry's parts stand on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from tapestry_coordinator.database import (
    at_every_turn,
    open_database,
    require_sound,
    transaction,
)
from tapestry_coordinator.ledgering import Ledger


class Book:
    """One database, and its ledger; every method of what stands on it is one transaction."""

    def __init__(self, url: str) -> None:
        """Connect to the database at `url` and bring its schema up to date.

        Raises:
            ConfigError: It cannot be opened.
        """
        self._engine = open_database(url)
        self.ledger = Ledger(self.begin)
        """Of everything that was recorded."""

    def fence(self, check: Callable[[Connection], None]) -> None:
        """Let `check` refuse a transaction of ours by raising, before it has done anything."""
        at_every_turn(self._engine, check)

    def require_sound(self) -> None:
        """Look through the database if it is a file.

        Raises:
            ConfigError: It is damaged.
        """
        require_sound(self._engine)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Begin a transaction, for what other modules keep in this database."""
        with transaction(self._engine) as connection:
            yield connection
