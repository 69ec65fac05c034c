"""The registry as the simulator uses it: the real one, whose answers are not asked for twice."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import event

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.actions import pause_in_force
from tapestry_coordinator.events import Event
from tapestry_coordinator.ledgering import Seal
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import Member
from tapestry_coordinator.tables import metadata
from tests.simulation.history import Records, Row

_READS = {
    "members": "members",
    "plan": "plans",
    "contribution": "contributions",
    "contributions": "contributions",
    "contributions_before": "contributions",
    "round_events": "events",
    "newest_round": "checkpoints",
    "lineage": "checkpoints",
    "manifest": "checkpoints",
    "policy": "policies",
    "newest_policy": "policies",
    "ruling": "rulings",
    "evaluations": "evaluations",
}
_WRITES = {
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


_BESIDE = {
    "plan": "plans",
    "contribution": "contributions",
    "speed": "members",
    "manifest": "checkpoints",
    "attendance": "members",
}
"""What is recorded beside an event, and what it changes."""


class Remembering(Registry):
    """The registry, whose answers are remembered until the next write: most are asked for often."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._answers: dict[str, dict[tuple[object, ...], Any]] = defaultdict(dict)
        self._invitations = 0
        event.listen(self._engine, "connect", _never_wait)
        self._engine.dispose()
        self.database = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)

    def forget(self) -> None:
        """Read the database again, as a new process does, or after another one has written."""
        self._answers.clear()

    def member(self, member_id: str) -> Member | None:
        return next((m for m in self.members() if m.member_id == member_id), None)

    def record_event(self, number: int, event_: Event, *, now: float, **rest: Any) -> None:
        try:
            super().record_event(number, event_, now=now, **rest)
        finally:
            changed = {
                "events",
                *(_BESIDE[n] for n, value in rest.items() if value and n != "seal"),
            }
            for kind in changed:
                self._answers.pop(kind, None)

    def admit(self, member_id: str, *, signing_key: bytes, serial: int, now: float) -> None:
        """Invite and enrol a member."""
        self._invitations += 1
        token = sha256(f"{member_id} {self._invitations}".encode()).digest()
        self.add_invitation(token, member_id=member_id, now=now, expires_at=now + 60)
        self.enrol(
            token,
            member_id=member_id,
            signing_key=signing_key,
            certificate_serial=serial,
            now=now,
        )

    def event_rows(self) -> tuple[Row, ...]:
        return Records.read(self.database).events

    def ledger_rows(self) -> tuple[Row, ...]:
        return Records.read(self.database).ledger

    def records(self) -> Records:
        """Return the tables, read past the product."""
        return Records.read(self.database)

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
def _registry(folder: Path) -> Remembering:
    """One database for all histories of this process: migrating one costs as much as a history."""
    return Remembering(f"sqlite:///{folder / 'coordinator.db'}")


def empty_registry(
    folder: Path, genesis: Envelope, policy: FederationPolicy, seal: Seal, *, now: float
) -> Remembering:
    """Return the database with nothing in it but a founded federation."""
    registry = _registry(folder)
    registry.database.execute("BEGIN")
    for table in reversed(metadata.sorted_tables):
        registry.database.execute(f"DELETE FROM {table.name}")  # noqa: S608 - our own names
    registry.database.execute("COMMIT")
    registry.forget()
    registry.add_genesis(payload_digest(genesis), genesis, seal)
    registry.adopt_policy(policy, now=now)
    return registry
