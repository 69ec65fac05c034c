"""Calls that are begun and not gone on with, over real connections; only the clock is ours."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.shaped_line import ShapedLine
from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.identity.keys import private_pem
from tapestry.params.fragments import unpack_missing
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry.v1 import transfer_pb2
from tapestry.wire.bulk import FETCH, PUT_FRAGMENT, BulkStub, PutFragment
from tapestry.wire.limits import CALLS_OF_ONE, COMMIT_SECONDS, STALL_SECONDS
from tapestry_coordinator import rounds_service
from tests.coordinator.small import found_small
from tests.wire.conftest import ROUNDS
from tests.wire.serving import WORKERS, Coordinator, Line, Member

WATCH = "/tapestry.v1.RoundsService/WatchPlans"
ENROL = "/tapestry.v1.EnrolmentService/Enrol"
DESCRIBE = "/tapestry.v1.TransferService/Describe"
COMMIT = "/tapestry.v1.TransferService/Commit"


class Begun:
    """Calls that a member began and leaves alone; they end with the test."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.calls: list[Any] = []
        self._stack = ExitStack()
        self._end = threading.Event()

    def channel(self, address: str | None = None) -> grpc.Channel:
        """A connection whose own reading window is too small for anything."""
        to = self.member.coordinator
        mine = (private_pem(self.member.tls_key), self.member.certificate)
        credentials = grpc.ssl_channel_credentials(
            to.root_pem, *(mine if self.member.certificate else ())
        )
        options = [
            ("grpc.ssl_target_name_override", "coordinator.tapestry.internal"),
            ("grpc.http2.lookahead_bytes", 64),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return self._stack.enter_context(
            grpc.secure_channel(address or to.address, credentials, options)
        )

    def without_message(
        self, method: str, *, count: int, channels: int = 1, address: str | None = None
    ) -> None:
        """Begin calls and send no message."""

        def nothing() -> Iterator[bytes]:
            self._end.wait()
            yield from ()

        for channel in [self.channel(address) for _ in range(channels)]:
            begin = channel.stream_unary(method)
            self.calls += [begin.future(nothing()) for _ in range(count)]

    def unread(self, method: str, request: bytes = b"", *, count: int, channels: int = 1) -> None:
        """Ask for streams and read nothing of them."""
        for channel in [self.channel() for _ in range(channels)]:
            begin = channel.unary_stream(method)
            self.calls += [begin(request) for _ in range(count)]

    def over(self) -> int:
        """How many the coordinator has ended."""
        return sum(call.done() for call in self.calls)

    def end(self) -> None:
        self._end.set()
        for call in self.calls:
            call.cancel()
        self._stack.close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    """A federation of two fragments whose rounds need one member."""
    alone = ROUNDS.model_copy(update={"quorum": 1})
    serving = Coordinator(found_small(tmp_path / "fed", FRAGMENT_ELEMENTS + 2, rounds=alone))
    yield serving
    serving.stop()
    serving.store.close()


@pytest.fixture
def greedy(coordinator: Coordinator) -> Iterator[Begun]:
    begun = Begun(coordinator.join("greedy"))
    yield begun
    begun.end()


@pytest.fixture
def other(coordinator: Coordinator) -> Iterator[Line]:
    with coordinator.join("other").connected() as line:
        line.describe()
        yield line


@pytest.fixture
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_service, "HEARTBEAT_SECONDS", 0.1)


def model(coordinator: Coordinator) -> bytes:
    """A request for a file of four messages."""
    files = coordinator.desk.genesis.newest.files
    (digest,) = [f.digest for f in files if f.name == MODEL_FILE]
    return transfer_pb2.FetchRequest(digest=bytes.fromhex(digest)).SerializeToString()


def eventually(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_calls_that_one_member_leaves_alone_do_not_keep_the_others_out(
    coordinator: Coordinator, greedy: Begun, other: Line
) -> None:
    assert CALLS_OF_ONE < WORKERS
    for method in (PUT_FRAGMENT, COMMIT, DESCRIBE, WATCH):
        greedy.without_message(method, count=WORKERS, channels=2)
        other.describe()
    for method, request in ((FETCH, model(coordinator)), (WATCH, b"")):
        greedy.unread(method, request, count=WORKERS, channels=2)
        other.describe()
    with ThreadPoolExecutor(CALLS_OF_ONE) as pool:
        list(pool.map(lambda _: other.describe(), range(CALLS_OF_ONE)))


def test_callers_without_a_certificate_do_not_keep_newcomers_out(coordinator: Coordinator) -> None:
    stranger = Begun(Member(coordinator, "stranger"))
    stranger.without_message(ENROL, count=WORKERS, channels=2, address=coordinator.door)
    assert coordinator.join("newcomer").certificate
    stranger.end()


def test_a_call_whose_message_does_not_come_is_ended(
    coordinator: Coordinator, greedy: Begun
) -> None:
    greedy.without_message(COMMIT, count=3)
    greedy.without_message(PUT_FRAGMENT, count=2)  # which may stand behind others on a slow line
    eventually(lambda: coordinator.places.waiting == 5)
    coordinator.clock.forward(STALL_SECONDS + 1)
    coordinator.places.end_stalled()
    eventually(lambda: coordinator.places.waiting == 2)
    eventually(lambda: greedy.over() == 3)
    coordinator.clock.forward(COMMIT_SECONDS)
    coordinator.places.end_stalled()
    eventually(lambda: coordinator.places.waiting == 0)


def test_a_file_that_nobody_reads_is_not_kept_open(coordinator: Coordinator, greedy: Begun) -> None:
    greedy.unread(FETCH, model(coordinator), count=2)
    eventually(lambda: coordinator.places.waiting == 2 == opened_models())
    coordinator.clock.forward(STALL_SECONDS - 1)
    coordinator.places.end_stalled()
    assert opened_models() == 2
    coordinator.clock.forward(2)
    coordinator.places.end_stalled()
    eventually(lambda: opened_models() == 0)


def opened_models() -> int:
    """How often this process has the model's file open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.readlink().name == MODEL_FILE for link in links if link.is_symlink())


@pytest.mark.usefixtures("quick_heart")
def test_a_member_that_does_not_take_its_plans_is_not_here(
    coordinator: Coordinator, greedy: Begun
) -> None:
    greedy.unread(WATCH, count=1)
    eventually(lambda: coordinator.desk.here() == ["greedy"])

    def is_away() -> bool:
        coordinator.clock.forward(STALL_SECONDS + 1)
        coordinator.places.end_stalled()
        return coordinator.desk.here() == []

    eventually(is_away)


@pytest.mark.usefixtures("quick_heart")
def test_a_member_that_takes_its_plans_stays(coordinator: Coordinator, other: Line) -> None:
    watch = other.watch()
    for _heartbeat in range(2):
        coordinator.clock.forward(STALL_SECONDS - 1)
        coordinator.places.end_stalled()
        assert watch.next() == watch.first, "nothing has changed"
    assert coordinator.desk.here() == ["other"]
    watch.end()


def test_what_the_coordinator_takes_long_for_is_not_ended(
    coordinator: Coordinator, other: Line
) -> None:
    plan = plan_for(coordinator, other)
    fragments = [bytes(4 * FRAGMENT_ELEMENTS), bytes(8)]
    with ThreadPoolExecutor(1) as pool:
        with coordinator.store.turn("other"):
            opening = pool.submit(other.open_upload, plan, fragments)
            time.sleep(0.2)  # it arrives, and waits for its turn
            coordinator.clock.forward(COMMIT_SECONDS + 1)
            coordinator.places.end_stalled()
        assert unpack_missing(opening.result().missing, 2) == [0, 1]


def plan_for(coordinator: Coordinator, line: Line) -> RoundPlan:
    """Open a round for one member; it does not listen on."""
    watch = line.watch()
    coordinator.clock.forward(ROUNDS.gather_seconds + 1)
    coordinator.desk.pass_time()
    plan = watch.until_plan()
    watch.end()
    eventually(lambda: coordinator.places.waiting == 0)
    return plan


def test_a_fragment_that_stops_half_way_is_ended_and_can_be_sent_again(
    coordinator: Coordinator, other: Line
) -> None:
    plan = plan_for(coordinator, other)
    fragments = [bytes(4 * FRAGMENT_ELEMENTS), bytes(8)]
    other.open_upload(plan, fragments)
    with (
        ShapedLine(coordinator.address, up_bytes_per_second=2e6) as line,
        other.member.connected(address=line.address) as slow,
    ):
        half = BulkStub(slow.channel).put_fragment.future(PutFragment(1, 0, fragments[0]))
        eventually(lambda: line.passed()[0] > 1e6)
        line.blackhole()
        coordinator.clock.forward(COMMIT_SECONDS + 1)
        coordinator.places.end_stalled()
        eventually(lambda: coordinator.places.waiting == 0)
        assert not half.done(), "nothing that is said gets through"
        for index, data in enumerate(fragments):
            other.put(1, index, data)
        other.commit(other.declared(plan, fragments, norm=0.0))


def test_pieces_that_come_one_by_one_have_the_time_of_one_fragment(
    coordinator: Coordinator, other: Line
) -> None:
    """Else a member that sends a byte every nine minutes would keep its place for ever."""
    plan = plan_for(coordinator, other)
    other.open_upload(plan, [bytes(4 * FRAGMENT_ELEMENTS), bytes(8)])
    pieces: queue.Queue[PutFragment | None] = queue.Queue()
    call = BulkStub(other.channel).put_pieces.future(iter(pieces.get, None))
    for sent in (1, 2, 3):
        pieces.put(PutFragment(1, 0, bytes(1000)))
        eventually(lambda: pieces.empty() and coordinator.places.waiting == 1)
        coordinator.clock.forward(COMMIT_SECONDS / 2.5)
        for _look in range(5):
            coordinator.places.end_stalled()
            time.sleep(0.02)
        assert sent == 3 or not call.done()

    def is_ended() -> bool:  # once the coordinator waits again, after it has taken what came
        coordinator.places.end_stalled()
        return bool(call.done())

    eventually(is_ended)
    pieces.put(None)
    assert call.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: coordinator.places.waiting == 0)
    other.put(1, 0, bytes(4 * FRAGMENT_ELEMENTS))
