"""Checkpoints that the machine lost are made again to the bit; those it kept are left alone."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator import publisher, settling
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Arrived, Published, Tick
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Effect
from tapestry_coordinator.rounds import folded, tick
from tapestry_coordinator.settings import RoundsSettings
from tapestry_coordinator.settling import UNSETTLED_FILE, Settling
from tests.coordinator.small import FOUNDED_AT, Small, arriving, found_small
from tests.servers import Postgres

RULES = RoundsSettings(quorum=1, gather_seconds=0.0, grace_seconds=0.0).rules()
DELTAS = ([0.5, 0.25], [0.125, -1.0])


class Machine:
    """A coordinator that publishes rounds as its server does, and may lose its power."""

    def __init__(self, small: Small, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.small = small
        self.home = small.home
        self.registry = registry
        self._patch = monkeypatch

    @property
    def settling(self) -> Settling:
        return Settling(self.home, self.registry, self.small.publisher)

    def closed(self, delta: list[float]) -> ClosedRound:
        """Open a round, take a contribution, close; all of it stored."""
        number = (self.registry.newest_round() or 0) + 1
        ready = Tick(ready=("a",), enrolled=1, rules=RULES)
        state, _effects = tick(folded(number, []), ready, now=FOUNDED_AT + 1)
        plan = self.small.plan(("a",))
        envelope = plan.signed(self.small.key)
        self.registry.record_event(
            number,
            ready,
            now=FOUNDED_AT + 1,
            plan=(state.attempt, payload_digest(envelope), envelope),
        )
        stored = self.small.contributed(plan, "a", np.array(delta, np.float32))
        arrived = Arrived(member_id="a", digest=stored.digest)
        _state, effects = tick(state, arrived, now=FOUNDED_AT + 2)
        assert Effect.AGGREGATE in effects
        self.registry.record_event(
            number, arrived, now=FOUNDED_AT + 2, contribution=arriving(stored)
        )
        return ClosedRound.recorded(
            self.registry, folded(number, self.registry.round_events(number))
        )

    def publish(self, delta: list[float], *, is_heard_of: bool = True) -> Envelope:
        """Publish; the disk has not caught up when this returns."""
        closed = self.closed(delta)
        number = closed.plan.round
        self.settling.begin(number)
        envelope = self.small.publisher.publish(closed)
        if is_heard_of:
            digest = payload_digest(envelope)
            self.registry.record_event(
                number,
                Published(manifest=digest),
                now=FOUNDED_AT + 3,
                manifest=(digest, envelope),
            )
        return envelope

    def lose_power(self) -> None:
        self._patch.setattr(settling, "boot_id", lambda: "the boot after")

    def content(self) -> dict[str, bytes]:
        """All that a checkpoint and its state consist of."""
        folders = (self.home.published, self.home.folder / "outer")
        return {
            str(path.relative_to(self.home.folder)): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture(params=["sqlite-float32", "sqlite-bfloat16", "postgresql-bfloat16"])
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    database, downlink = request.param.split("-")
    small = found_small(tmp_path / "fed", downlink=downlink, learning_rate=0.5)
    url = database_url(small.home)
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.new_database()
    with closing(Registry(url)) as registry:
        if database == "postgresql":
            (genesis,) = small.lineage
            registry.add_genesis(payload_digest(genesis), genesis)
            registry.adopt_policy(small.policy, now=FOUNDED_AT)
        machine = Machine(small, registry, monkeypatch)
        machine.publish(DELTAS[0])
        machine.settling.finish(1)
        yield machine


def model(machine: Machine) -> None:
    path = machine.home.checkpoint(2) / MODEL_FILE
    path.write_bytes(b"\0" * path.stat().st_size)


def state(machine: Machine) -> None:
    path = machine.home.outer_state(2)
    path.write_bytes(b"\0" * path.stat().st_size)


def shorter_state(machine: Machine) -> None:
    machine.home.outer_state(2).write_bytes(b"")


def no_state(machine: Machine) -> None:
    machine.home.outer_state(2).unlink()


def folder(machine: Machine) -> None:
    shutil.rmtree(machine.home.checkpoint(2))


def card(machine: Machine) -> None:
    (machine.home.checkpoint(2) / "tapestry" / "card.json").write_bytes(b"")


@pytest.mark.parametrize("loss", [model, state, shorter_state, no_state, folder, card])
def test_what_a_power_cut_took_is_made_again_to_the_bit(
    machine: Machine, loss: Callable[[Machine], None]
) -> None:
    machine.publish(DELTAS[1])
    before = machine.content()
    loss(machine)
    assert machine.content() != before
    machine.lose_power()
    machine.settling.recover()
    assert machine.content() == before
    verify_checkpoint(machine.home.checkpoint(2))
    assert not (machine.home.folder / UNSETTLED_FILE).exists()


def test_what_a_power_cut_left_whole_is_left_alone(machine: Machine) -> None:
    machine.publish(DELTAS[1])
    inode = (machine.home.checkpoint(2) / MODEL_FILE).stat().st_ino
    machine.lose_power()
    machine.settling.recover()
    assert (machine.home.checkpoint(2) / MODEL_FILE).stat().st_ino == inode


def test_nothing_is_verified_after_a_mere_crash(machine: Machine) -> None:
    machine.publish(DELTAS[1])
    inode = (machine.home.checkpoint(2) / MODEL_FILE).stat().st_ino
    machine.settling.recover()
    assert (machine.home.checkpoint(2) / MODEL_FILE).stat().st_ino == inode
    assert not (machine.home.folder / UNSETTLED_FILE).exists()


def test_a_checkpoint_that_nobody_heard_of_is_made_by_the_next_aggregation(
    machine: Machine,
) -> None:
    first = machine.publish(DELTAS[1], is_heard_of=False)
    model(machine)
    machine.lose_power()
    machine.settling.recover()
    assert not machine.home.checkpoint(2).exists()
    events = machine.registry.round_events(2)
    again = machine.small.publisher.publish(
        ClosedRound.recorded(machine.registry, folded(2, events))
    )
    assert again.payload == first.payload


def test_a_note_that_cannot_be_read_means_the_worst(machine: Machine) -> None:
    machine.publish(DELTAS[1], is_heard_of=False)
    (machine.home.folder / UNSETTLED_FILE).write_bytes(b"\0\0\0")
    machine.settling.recover()
    assert not machine.home.checkpoint(2).exists()
    verify_checkpoint(machine.home.checkpoint(1))


def test_another_result_is_not_passed_off_as_the_published_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.publish(DELTAS[1])
    model(machine)
    machine.lose_power()
    monkeypatch.setattr(publisher, "software", lambda: {"tapestry": "another"})
    with pytest.raises(UnavailableError, match="computing it again gives another one"):
        machine.settling.recover()
    with pytest.raises(UnavailableError, match="computing it again gives another one"):
        machine.settling.recover()


def test_what_killed_processes_left_half_done_is_removed_at_the_start(machine: Machine) -> None:
    state = machine.home.outer_state(2).with_name(".round-000002.f32.1234abcd.part")
    state.write_bytes(b"half")
    retired = machine.home.published / ".round-000000.1234abcd.part"
    retired.mkdir()
    (retired / "model.safetensors").write_bytes(b"old")
    machine.settling.recover()
    assert not state.exists()
    assert not retired.exists()
    assert verify_checkpoint(machine.home.checkpoint(1)).manifest.round == 1
