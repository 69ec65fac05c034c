"""The registry as the simulator uses it: the real one, whose answers are not asked for twice."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import event

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.actions import pause_in_force
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.tables import metadata
from tests.simulation.world import START

_READS = {
    "member": "members",
    "members": "members",
    "plan": "rounds",
    "contribution": "rounds",
    "contributions": "rounds",
    "contributions_before": "rounds",
    "round_events": "rounds",
    "newest_round": "checkpoints",
    "lineage": "checkpoints",
    "manifest": "checkpoints",
    "policy": "policies",
    "newest_policy": "policies",
    "ruling": "rulings",
    "evaluations": "evaluations",
}
_WRITES = {
    "record_event": ("rounds", "members", "checkpoints"),
    "add_genesis": ("checkpoints",),
    "enrol": ("members",),
    "renew": ("members",),
    "revoke": ("members",),
    "seen": ("members",),
    "adopt_policy": ("policies",),
    "rule": ("rulings",),
    "add_evaluation": ("evaluations",),
    "forget_evaluations": ("evaluations",),
}
"""What a method reads or changes."""


class Remembering(Registry):
    """The registry, whose answers are remembered until the next write: most are asked for often."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._answers: dict[str, dict[tuple[object, ...], Any]] = defaultdict(dict)
        event.listen(self._engine, "connect", _never_wait)
        self._engine.dispose()

    def forget(self) -> None:
        """Read the database again, as a new process does, or after another one has written."""
        self._answers.clear()

    def pause(self) -> Any:
        """What `pause_in_force` returns."""
        answers = self._answers["actions"]
        if () not in answers:
            answers[()] = pause_in_force(self)
        return answers[()]


def _never_wait(connection: Any, _record: object) -> None:
    """Processes die here only between two statements: nothing has to be on a disk."""
    connection.execute("PRAGMA synchronous=OFF").close()


def _remembered(name: str, kind: str) -> Callable[..., Any]:
    def read(self: Remembering, *args: Any, **named: Any) -> Any:
        answers = self._answers[kind]
        key = (name, *args, *named.items()) if named else (name, *args)
        try:
            return answers[key]
        except KeyError:
            found = answers[key] = getattr(Registry, name)(self, *args, **named)
            return found

    return read


def _forgetting(name: str, kinds: tuple[str, ...]) -> Callable[..., Any]:
    def write(self: Remembering, *args: Any, **named: Any) -> Any:
        try:
            return getattr(Registry, name)(self, *args, **named)
        finally:
            for kind in kinds:
                self._answers.pop(kind, None)

    return write


for _name, _kind in _READS.items():
    setattr(Remembering, _name, _remembered(_name, _kind))
for _name, _kinds in _WRITES.items():
    setattr(Remembering, _name, _forgetting(_name, _kinds))


@cache
def database(folder: Path) -> tuple[Remembering, sqlite3.Connection]:
    """One database for all histories of this process: migrating one costs as much as a history."""
    path = folder / "coordinator.db"
    return Remembering(f"sqlite:///{path}"), sqlite3.connect(path, isolation_level=None)


def empty_database(
    folder: Path, genesis: Envelope, policy: FederationPolicy
) -> tuple[Remembering, sqlite3.Connection]:
    """Return the database with nothing in it but a founded federation."""
    registry, connection = database(folder)
    connection.execute("BEGIN")
    for table in reversed(metadata.sorted_tables):
        connection.execute(f"DELETE FROM {table.name}")  # noqa: S608 - our own names
    connection.execute("COMMIT")
    registry.forget()
    registry.add_genesis(payload_digest(genesis), genesis)
    registry.adopt_policy(policy, now=START)
    return registry, connection
