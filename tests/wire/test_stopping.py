"""A coordinator that writes and stops while it serves; it runs here, its caller in a thread."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.manifest import Card
from tapestry.params.fragments import fragment_digest
from tapestry_coordinator import listening
from tapestry_coordinator import server as server_module
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.card import write_card
from tapestry_coordinator.listening import Listening
from tapestry_coordinator.server import CoordinatorServer
from tapestry_coordinator.settings import NetworkSettings
from tapestry_coordinator.settling import Settling
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_demo.federation import free_port_pair
from tests.coordinator.small import Small, found_small
from tests.e2e.echoing import enrolled
from tests.e2e.test_hostile_member import ROUNDS, Caller
from tests.wire.serving import CALL_SECONDS
from tests.wire.test_places import eventually


@pytest.fixture
def signals() -> Iterator[None]:
    """Give back what the server has taken."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def small_that_listens(folder: Path) -> tuple[Small, str]:
    """A small federation at free ports of this machine; and where members call it."""
    small, port = found_small(folder, rounds=ROUNDS), free_port_pair()
    listen, door = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    network = NetworkSettings(
        listen=listen, enrolment_listen=door, address=listen, enrolment_address=door
    )
    settings = small.home.load_settings().model_copy(update={"network": network})
    settings_module.save(small.home.folder, settings)
    return small, listen


def serve_while(server: CoordinatorServer, work: Callable[[], None]) -> None:
    """Serve until `work`, in another thread, is done."""

    def do() -> None:
        try:
            work()
        finally:
            server.stop()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(do)
        server.serve()
        done.result()


@pytest.mark.usefixtures("signals")
def test_the_card_of_a_checkpoint_that_was_measured_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_CARD_SECONDS", 0.1)
    small, _listen = small_that_listens(tmp_path / "fed")
    server = CoordinatorServer(small.home)

    def measured() -> list[tuple[str, float]]:
        envelope = read_envelope(small.home.checkpoint(0) / CARD_FILE, what="card")
        entries = Card.parsed(envelope.payload, what="card").evaluations
        return [(one.member_id, one.bits_per_byte) for one in entries]

    def measure() -> None:
        for member_id, bits in (("a", 2.5), ("b", 3.5)):
            server.desk.evaluate(
                StoredEvaluation(
                    round=0,
                    member_id=member_id,
                    language="fra",
                    bits_per_byte=bits,
                    held_out_bytes=1000,
                )
            )
            eventually(lambda now=(member_id, bits): now in measured())

    serve_while(server, measure)
    assert measured() == [("a", 2.5), ("b", 3.5)]


@pytest.mark.usefixtures("signals")
def test_what_a_bug_kept_from_the_disk_is_tried_again_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _listen = small_that_listens(tmp_path / "fed")
    server, faults = CoordinatorServer(small.home), [RuntimeError("a bug")]

    def share(_settling: Settling, _number: int) -> None:
        if faults:
            raise faults.pop()

    monkeypatch.setattr(Settling, "share", share)

    def settle() -> None:
        server._settle(0)  # noqa: SLF001 - as after a round
        with pytest.raises(RuntimeError, match="a bug"):
            server._wait_until_settled()  # noqa: SLF001
        server._wait_until_settled()  # noqa: SLF001

    serve_while(server, settle)


@pytest.mark.usefixtures("signals")
def test_a_checkpoint_that_is_retired_while_its_card_is_written_anew_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small, _listen = small_that_listens(tmp_path / "fed")
    server, folder, retired = CoordinatorServer(small.home), small.home.checkpoint(1), list[Path]()

    def retire_first(written: Path, *arguments: Any, **more: Any) -> None:
        if written == folder:
            shutil.rmtree(folder)
            retired.append(folder)
        write_card(written, *arguments, **more)

    monkeypatch.setattr(server_module, "write_card", retire_first)

    def measure() -> None:
        shutil.copytree(small.home.checkpoint(0), folder)
        server.desk.cards.note(1, at=0.0)
        eventually(lambda: retired == [folder])
        shutil.copytree(small.home.checkpoint(0), folder)
        server.desk.cards.note(1, at=0.0)
        eventually(lambda: retired == [folder] * 2, seconds=5.0)

    serve_while(server, measure)
    assert "tried again" not in caplog.text


@pytest.mark.usefixtures("signals")
def test_the_card_of_a_candidate_is_written_anew_when_that_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_CARD_SECONDS", 0.1)
    small, _listen = small_that_listens(tmp_path / "fed")
    server, candidate, written = (
        CoordinatorServer(small.home),
        small.home.candidate(1),
        list[Path](),
    )
    monkeypatch.setattr(
        server_module, "write_card", lambda at, *_more, **_named: written.append(at)
    )

    def measure() -> None:
        shutil.copytree(small.home.checkpoint(0), candidate)
        server.desk.cards.note(1, at=0.0)
        time.sleep(1.0)  # it is due
        assert small.home.checkpoint(1) not in written
        candidate.rename(small.home.checkpoint(1))
        eventually(lambda: small.home.checkpoint(1) in written)

    serve_while(server, measure)


@pytest.mark.usefixtures("signals")
def test_who_sees_the_coordinator_listen_can_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _listen = small_that_listens(tmp_path / "fed")
    begin = Listening.start

    def stopped_at_once(listening: Listening) -> None:
        begin(listening)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Listening, "start", stopped_at_once)
    CoordinatorServer(small.home).serve()


class Held(threading.Event):
    """Whose lock is held while a signal comes, as it is for a moment of every waiting."""

    is_held = False
    was_set_while_held = False
    """What a lock that is held would wait for, for ever."""

    def wait(self, timeout: float | None = None) -> bool:
        self.is_held = True
        signal.raise_signal(signal.SIGINT)
        self.is_held = False
        return super().wait(timeout)

    def set(self) -> None:
        self.was_set_while_held |= self.is_held
        super().set()


@pytest.mark.usefixtures("signals")
def test_a_signal_is_heard_whatever_it_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _listen = small_that_listens(tmp_path / "fed")
    server = CoordinatorServer(small.home)
    server._stopping = held = Held()  # noqa: SLF001
    ticks: list[bool] = []

    def rest(*, look: bool) -> None:
        ticks.append(look)
        held.wait(0.01)  # as the main thread does where the database is gone

    monkeypatch.setattr(server.desk, "pass_time", rest)
    server.serve()
    assert len(ticks) == 1
    assert not held.was_set_while_held


@pytest.mark.usefixtures("signals")
def test_calls_are_over_when_the_coordinator_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_STOP_SECONDS", 0.2)
    small, listen = small_that_listens(tmp_path / "fed")
    identity = enrolled(small, tmp_path, "a").identity
    server = CoordinatorServer(small.home)

    def call() -> None:
        """Begin a call that has to wait, let the coordinator stop, and let the call go on."""
        try:
            with ExitStack() as stack:
                caller = Caller(identity, listen, stack)
                grpc.channel_ready_future(caller.channel).result(CALL_SECONDS)
                plan = caller.plan()
                pool = stack.enter_context(ThreadPoolExecutor(1))
                with server._store.turn("a"):  # noqa: SLF001 - what a call waits for
                    waiting = pool.submit(caller.announce, plan, [fragment_digest(bytes(8))])
                    time.sleep(0.3)  # it arrives
                    server.stop()
                    with pytest.raises(grpc.RpcError):
                        waiting.result()
                    time.sleep(1)
        finally:
            server.stop()

    with ThreadPoolExecutor(1, thread_name_prefix="caller") as pool:
        called = pool.submit(call)
        server.serve()
        left = [t.name for t in threading.enumerate() if t.name.startswith(("call_", "ThreadPool"))]
        called.result()
    assert left == []
