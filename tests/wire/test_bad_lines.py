"""Lines that are slow, and rounds that go by while a line is down."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.shaped_line import ShapedLine
from tapestry.params.fragments import unpack_missing
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry.v1 import rounds_pb2
from tapestry.wire import channels
from tapestry.wire.bulk import BulkStub, PutFragment
from tapestry.wire.fetching import Fetcher
from tapestry.wire.limits import CHANNEL_OPTIONS, HEARTBEAT_SECONDS, SERVER_OPTIONS
from tapestry_coordinator import rounds_service
from tests.coordinator.small import found_small
from tests.wire import serving
from tests.wire.conftest import ROUNDS
from tests.wire.serving import Coordinator, Line
from tests.wire.test_fetching import model_entry

FRAGMENT_BYTES = 4 * FRAGMENT_ELEMENTS
FRAGMENTS = [bytes(FRAGMENT_BYTES), bytes(FRAGMENT_BYTES), bytes(8)]
ALONE = ROUNDS.model_copy(update={"quorum": 1})


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    """A federation of two whole fragments and one of two elements."""
    made = Coordinator(found_small(tmp_path / "fed", 2 * FRAGMENT_ELEMENTS + 2, rounds=ALONE))
    yield made
    made.stop()
    made.store.close()


TIME_SHRINKS = 20
TIMES = {"grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms"}


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever may take a line for dead does so after a twentieth of its time."""

    def quicker(options: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return [(k, v // TIME_SHRINKS if k in TIMES else v) for k, v in options]

    monkeypatch.setattr(channels, "CHANNEL_OPTIONS", quicker(CHANNEL_OPTIONS))
    monkeypatch.setattr(serving, "SERVER_OPTIONS", quicker(SERVER_OPTIONS))
    monkeypatch.setattr(rounds_service, "HEARTBEAT_SECONDS", HEARTBEAT_SECONDS / TIME_SHRINKS)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_pings")
def test_a_line_that_is_slow_is_not_taken_for_a_dead_one(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """0.5 Mbit/s and 300 ms one way, twenty times as fast: minutes go by without an answer."""
    with ExitStack() as stack:
        sends, fetches = (
            stack.enter_context(slow_line(coordinator, member, stack))
            for member in ("sends", "fetches")
        )
        watches = [listening(line, stack) for line in (sends, fetches)]
        coordinator.clock.forward(ROUNDS.gather_seconds + 1)
        coordinator.desk.pass_time()
        pool = stack.enter_context(ThreadPoolExecutor(1))
        entry = model_entry(coordinator)
        fetched = pool.submit(Fetcher(fetches.channel, "the coordinator").fetch, entry, tmp_path)
        sends.open_upload(coordinator.plan, FRAGMENTS)
        bulk = BulkStub(sends.channel)
        requests = [PutFragment(1, index, data) for index, data in enumerate(FRAGMENTS)]
        sent = [bulk.put_fragment.future(request, timeout=60) for request in requests]
        for call in sent:
            call.result()  # the first time, or it raises
        assert fetched.result().stat().st_size == entry.size_bytes
        assert all(watch.is_active() for watch in watches), "over the first connection still"


def slow_line(
    coordinator: Coordinator, member_id: str, stack: ExitStack
) -> AbstractContextManager[Line]:
    """A member's connection through a line of its own."""
    bytes_per_second = TIME_SHRINKS * 0.5e6 / 8
    shaped = ShapedLine(
        coordinator.address,
        up_bytes_per_second=bytes_per_second,
        down_bytes_per_second=bytes_per_second,
        one_way_seconds=0.3 / TIME_SHRINKS,
    )
    member = coordinator.join(member_id)
    return member.connected(address=stack.enter_context(shaped).address)


def listening(line: Line, stack: ExitStack) -> Any:
    """Listen to the coordinator as a node does, in a thread of its own."""
    call = line.rounds.WatchPlans(rounds_pb2.WatchPlansRequest())

    def listen() -> None:
        with suppress(grpc.RpcError):
            for _told in call:
                pass

    next(call)
    thread = threading.Thread(target=listen)
    thread.start()
    stack.callback(thread.join)
    stack.callback(call.cancel)
    return call


def test_an_upload_goes_on_in_the_next_attempt_of_its_round(coordinator: Coordinator) -> None:
    """What an hour without a line changes: the deadline is past, and nobody was here."""
    member = coordinator.join("a")
    with member.connected() as line:
        watch = line.watch()
        coordinator.clock.forward(ROUNDS.gather_seconds + 1)
        coordinator.desk.pass_time()
        plan = watch.until_plan()
        line.open_upload(plan, FRAGMENTS)
        line.put(plan.round, 1, FRAGMENTS[1])
    coordinator.clock.forward(ROUNDS.deadline_seconds + 1)
    coordinator.desk.pass_time()
    with member.connected() as line:
        again = line.watch().until_plan()
        assert (again.round, again.attempt) == (plan.round, plan.attempt + 1)
        missing = line.open_upload(again, FRAGMENTS).missing
        assert unpack_missing(missing, 3) == [0, 2], "what had come is not asked for again"
        for index in (0, 2):
            line.put(again.round, index, FRAGMENTS[index])
        line.commit(line.declared(again, FRAGMENTS, norm=0.0))
