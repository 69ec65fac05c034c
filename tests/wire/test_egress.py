"""The egress ledger: every request is in it before it leaves, and a change in it shows."""

import hashlib
import json
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from tapestry.errors import UntrustedError
from tapestry.v1 import transfer_pb2, transfer_pb2_grpc
from tapestry.wire.egress import (
    FIRST,
    EgressInterceptor,
    EgressLedger,
    LedgerFollower,
    ledger_head,
    read_ledger,
)

TO = "coordinator.example.org:7443"
SERVICE = "/tapestry.v1.TransferService"
NOON = 1_750_000_000.0


class Clock:
    """One second later at every look."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def open_ledger(path: Path) -> EgressLedger:
    return EgressLedger(path, to=TO, clock=Clock())


def written(path: Path, messages: list[bytes]) -> list[bytes]:
    """Write a ledger of `messages`; return its lines."""
    with closing(open_ledger(path)) as ledger:
        for message in messages:
            ledger.record(f"{SERVICE}/PutFragment", message)
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egress.jsonl"


def test_a_line_says_when_what_and_how_much_went_to_whom(path: Path) -> None:
    written(path, [b"weave"])
    (departure,) = read_ledger(path)
    assert departure.index == 0
    assert departure.time == NOON + 1
    assert departure.to == TO
    assert departure.call == f"{SERVICE}/PutFragment"
    assert departure.bytes == 5
    assert departure.digest == hashlib.sha256(b"weave").hexdigest()
    assert departure.previous == "0" * 64


def test_each_line_holds_the_digest_of_the_line_before(path: Path) -> None:
    lines = written(path, [b"a", b"bb", b"ccc"])
    first, second, third = map(json.loads, lines)
    assert first["previous"] == "0" * 64
    assert second["previous"] == hashlib.sha256(lines[0].rstrip(b"\n")).hexdigest()
    assert third["previous"] == hashlib.sha256(lines[1].rstrip(b"\n")).hexdigest()
    assert [departure.bytes for departure in read_ledger(path)] == [1, 2, 3]


def test_the_ledger_adds_up_the_bytes_of_this_process(path: Path) -> None:
    written(path, [b"of an earlier process"])
    with closing(open_ledger(path)) as ledger:
        ledger.record(f"{SERVICE}/Commit", b"12345")
        ledger.record(f"{SERVICE}/Commit", b"")
        assert ledger.bytes_sent == 5


def test_only_the_owner_can_read_the_ledger(path: Path) -> None:
    written(path, [b"a"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # as a copy from a backup might be
    open_ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_ledgers_one_after_the_other_make_one_chain(path: Path) -> None:
    written(path, [b"a", b"b"])
    written(path, [b"c"])
    written(path, [])
    written(path, [b"d"])
    assert [departure.index for departure in read_ledger(path)] == [0, 1, 2, 3]


def test_threads_write_one_chain(path: Path) -> None:
    with closing(open_ledger(path)) as ledger:

        def send(number: int) -> None:
            for size in range(25):
                ledger.record(f"{SERVICE}/PutFragment", bytes([number]) * size)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    departures = list(read_ledger(path))
    assert len(departures) == 100
    assert sum(departure.bytes for departure in departures) == 4 * sum(range(25))


def test_closing_twice_is_harmless(path: Path) -> None:
    ledger = open_ledger(path)
    ledger.close()
    ledger.close()


# What somebody does to the file afterwards


def _changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"bytes":2', b'"bytes":9'), *lines[2:]]


def _first_removed(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def _removed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:1], *lines[2:]]


def _added(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[1], *lines[2:]]


def _reordered(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def _renumbered(lines: list[bytes]) -> list[bytes]:
    """Take the second line out and close the gap in the numbers, but not in the digests."""
    kept = [json.loads(line) for line in (lines[0], *lines[2:])]
    for index, entry in enumerate(kept):
        entry["index"] = index
    return [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in kept]


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (_changed, 3),  # the line after the changed one no longer fits
        (_first_removed, 1),
        (_removed, 2),
        (_added, 3),
        (_reordered, 2),
        (_renumbered, 2),
    ],
)
def test_a_change_is_found_and_named_by_line(
    path: Path, tamper: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    lines = written(path, [b"a", b"bb", b"ccc", b"dddd"])
    path.write_bytes(b"".join(tamper(lines)))
    with pytest.raises(UntrustedError, match=rf"egress\.jsonl:{line}: the chain is broken"):
        list(read_ledger(path))


@pytest.mark.parametrize(
    "other", [b"not JSON", b"[]", b"{}", b"", b'{"index": 1}', b'"a text"', b"\xff\xfe"]
)
def test_a_line_that_is_none_of_a_ledger_is_named(path: Path, other: bytes) -> None:
    lines = written(path, [b"a", b"bb", b"ccc"])
    path.write_bytes(lines[0] + other + b"\n" + lines[2])
    with pytest.raises(UntrustedError, match=r"egress\.jsonl:2: not a ledger line"):
        list(read_ledger(path))


def test_a_change_does_not_hide_behind_lines_written_after_it(path: Path) -> None:
    lines = written(path, [b"a", b"bb", b"ccc"])
    path.write_bytes(b"".join(_changed(lines)))
    written(path, [b"dddd"])
    with pytest.raises(UntrustedError, match=r"egress\.jsonl:3: the chain is broken"):
        list(read_ledger(path))


@pytest.mark.parametrize("tamper", ["changed", "removed"])
def test_whoever_noted_the_head_sees_that_the_last_line_was_changed_or_taken_out(
    path: Path, tamper: str
) -> None:
    lines = written(path, [b"a", b"bb"])
    last = [] if tamper == "removed" else [lines[1].replace(b'"bytes":2', b'"bytes":1')]
    head = ledger_head(path)
    assert [departure.bytes for departure in read_ledger(path, head=head)] == [1, 2]
    path.write_bytes(b"".join([lines[0], *last]))
    with pytest.raises(UntrustedError, match=r"egress\.jsonl: no line has the SHA-256"):
        list(read_ledger(path, head=head))


# Crashes


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_line_cut_short_by_a_crash_is_mended(path: Path, kept_bytes: int) -> None:
    lines = written(path, [b"a", b"bb", b"ccc"])
    path.write_bytes(lines[0] + lines[1] + lines[2][:kept_bytes])
    written(path, [b"dddd"])
    assert [departure.bytes for departure in read_ledger(path)] == [1, 2, 4]


def test_a_first_line_cut_short_by_a_crash_is_mended(path: Path) -> None:
    (line,) = written(path, [b"a"])
    path.write_bytes(line[:20])
    written(path, [b"bb"])
    (departure,) = read_ledger(path)
    assert departure.bytes == 2
    assert departure.previous == "0" * 64


def test_a_line_is_on_the_disk_when_record_returns(path: Path) -> None:
    with closing(open_ledger(path)) as ledger:
        ledger.record(f"{SERVICE}/PutFragment", b"a")
        (departure,) = read_ledger(path)  # as after SIGKILL: nobody has closed anything
        assert departure.bytes == 1


@contextmanager
def full_disk(path: Path, *, free_bytes: int) -> Iterator[None]:
    """Let files of this process grow only a little beyond the size of `path`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("free_bytes", [0, 100])
def test_a_full_disk_breaks_no_chain(path: Path, free_bytes: int) -> None:
    with closing(open_ledger(path)) as ledger:
        ledger.record(f"{SERVICE}/PutFragment", b"a")
        with (
            full_disk(path, free_bytes=free_bytes),
            pytest.raises(OSError, match=r"too large|no space"),
        ):
            ledger.record(f"{SERVICE}/PutFragment", b"bb")
        ledger.record(f"{SERVICE}/PutFragment", b"ccc")
    assert [departure.bytes for departure in read_ledger(path)] == [1, 3]


# A real channel


class Coordinator(grpc.GenericRpcHandler):
    """Answers every call, and keeps the bytes that came and the ledger's length at that moment."""

    def __init__(self, ledger: Path) -> None:
        self.came: list[tuple[str, bytes]] = []
        self.lines: list[int] = []
        self._ledger = ledger

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = str(details.method)

        def take(request: bytes) -> None:
            self.lines.append(self._ledger.read_bytes().count(b"\n"))
            self.came.append((method, request))

        def answer(request: bytes, _context: grpc.ServicerContext) -> bytes:
            take(request)
            return b""

        def stream(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
            take(request)
            yield from (b"", b"")

        if method.endswith("/Fetch"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def coordinator(path: Path) -> Iterator[tuple[Coordinator, str]]:
    handler = Coordinator(path)
    server = grpc.server(ThreadPoolExecutor(2), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


@contextmanager
def stub_of(address: str, ledger: EgressLedger) -> Iterator[transfer_pb2_grpc.TransferServiceStub]:
    with grpc.insecure_channel(address) as channel:
        guarded = grpc.intercept_channel(channel, EgressInterceptor(ledger))
        yield transfer_pb2_grpc.TransferServiceStub(guarded)


def test_the_ledger_holds_exactly_what_arrives_at_the_other_end(
    path: Path, coordinator: tuple[Coordinator, str]
) -> None:
    handler, address = coordinator
    with closing(open_ledger(path)) as ledger, stub_of(address, ledger) as stub:
        fragment = transfer_pb2.PutFragmentRequest(round=3, index=7, data=b"\x01" * 1000)
        stub.PutFragment(iter([fragment]))
        stub.PutFragment.future(iter([fragment])).result()
        stub.PutFragment.with_call(iter([fragment]))
        fetch = transfer_pb2.FetchRequest(digest=b"\x02" * 32, offset_bytes=5)
        assert len(list(stub.Fetch(fetch))) == 2
        stub.Describe(transfer_pb2.DescribeRequest())
    departures = list(read_ledger(path))
    assert [departure.call for departure in departures] == [
        *[f"{SERVICE}/PutFragment"] * 3,
        f"{SERVICE}/Fetch",
        f"{SERVICE}/Describe",
    ]
    sent = [(departure.call, departure.bytes, departure.digest) for departure in departures]
    assert sent == [
        (method, len(request), hashlib.sha256(request).hexdigest())
        for method, request in handler.came
    ]
    assert departures[0].bytes == len(fragment.SerializeToString())
    assert departures[-1].bytes == 0


def test_a_request_is_written_before_it_is_sent(
    path: Path, coordinator: tuple[Coordinator, str]
) -> None:
    handler, address = coordinator
    with closing(open_ledger(path)) as ledger, stub_of(address, ledger) as stub:
        for index in range(3):
            stub.PutFragment(iter([transfer_pb2.PutFragmentRequest(round=1, index=index)]))
        list(stub.Fetch(transfer_pb2.FetchRequest()))
    assert handler.lines == [1, 2, 3, 4]


def test_a_request_that_cannot_be_written_is_not_sent(
    path: Path, coordinator: tuple[Coordinator, str]
) -> None:
    handler, address = coordinator
    with closing(open_ledger(path)) as ledger, stub_of(address, ledger) as stub:
        stub.Describe(transfer_pb2.DescribeRequest())
        ledger.close()
        with pytest.raises(ValueError, match="closed"):
            stub.Describe(transfer_pb2.DescribeRequest(round=1))
        with pytest.raises(ValueError, match="closed"):
            list(stub.Fetch(transfer_pb2.FetchRequest()))
    assert [request for _method, request in handler.came] == [b""]


def test_a_request_that_nobody_answers_is_in_the_ledger_too(path: Path) -> None:
    with (
        closing(open_ledger(path)) as ledger,
        stub_of("127.0.0.1:1", ledger) as stub,
        pytest.raises(grpc.RpcError),
    ):
        stub.Describe(transfer_pb2.DescribeRequest())
    assert [departure.call for departure in read_ledger(path)] == [f"{SERVICE}/Describe"]


def test_reading_tells_how_far_it_is(path: Path) -> None:
    lines = written(path, [b"x"] * 3)
    told: list[tuple[int, int]] = []
    assert len(list(read_ledger(path, on_progress=lambda done, of: told.append((done, of))))) == 3
    assert told == [(len(lines[0]), len(b"".join(lines)))], "at the first line, then now and then"


def test_who_follows_a_ledger_reads_each_line_once_and_sees_a_change(path: Path) -> None:
    follower = LedgerFollower(path)
    assert (list(follower.more()), follower.head) == ([], FIRST), "there is none yet"
    lines = written(path, [b"a", b"bb"])
    assert [one.bytes for one in follower.more()] == [1, 2]
    assert (list(follower.more()), follower.lines) == ([], 2)
    lines = written(path, [b"ccc", b"dddd"])
    path.write_bytes(b"".join(lines)[:-5])  # the last one is being written
    assert [one.bytes for one in follower.more()] == [3]
    path.write_bytes(b"".join(lines))
    assert [one.bytes for one in follower.more()] == [4]
    assert follower.head == ledger_head(path)
    written(path, [b"eeeee"])
    path.write_bytes(path.read_bytes().replace(b'"bytes":5', b'"bytes":4'))
    assert [one.bytes for one in follower.more()] == [4], "the next line tells of it"
    written(path, [b"f"])
    path.write_bytes(b"".join(lines))
    with pytest.raises(UntrustedError, match="was cut off before line 5"):
        list(follower.more())
    path.unlink()
    with pytest.raises(UntrustedError, match="was removed"):
        list(follower.more())
