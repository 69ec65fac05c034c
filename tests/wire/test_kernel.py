"""The kernel's count beside the ledger: real sockets, and bytes that no line of the ledger has."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tapestry.errors import UntrustedError
from tapestry.wire import kernel
from tapestry.wire.egress import EgressLedger
from tapestry.wire.kernel import KERNEL_FILE, Seen, counted, obstacle, read_kernel
from tapestry_node.auditing import Evidence, audit

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=f"not to be had here: {obstacle()}")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[EgressLedger]:
    with closing(EgressLedger(tmp_path / "egress.jsonl", to="a:1", clock=lambda: 5.0)) as made:
        yield made


@pytest.fixture
def far_end() -> Iterator[socket.socket]:
    """A connection to somebody who reads everything; not a socket of this process's opening."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            there, _ = server.accept()
            taken.append(there)
            while there.recv(65536):
                pass

        thread = threading.Thread(target=take)
        thread.start()
        with socket.create_connection(server.getsockname()) as here:
            yield here
        thread.join()
        taken[0].close()


def sent(here: socket.socket, size: int) -> None:
    here.sendall(b"x" * size)
    deadline = time.monotonic() + 10
    while acknowledged(here) < size:  # the kernel counts what it has put on the line
        assert time.monotonic() < deadline
        time.sleep(0.01)


def acknowledged(here: socket.socket) -> int:
    info = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    return int.from_bytes(info[200:208], "little")


def found_by(path: Path) -> dict[str, object]:
    found: dict[str, object] = audit(
        Evidence(
            ledger=path / "egress.jsonl",
            kernel=path / KERNEL_FILE,
            policies=path / "policies",
            receipts=path / "receipts",
            coordinator_key=b"",
            member_key=b"",
        )
    )["kernel"]
    return found


def mine(seen: Seen, here: socket.socket) -> int:
    return seen.sent_to["{}:{}".format(*here.getpeername())]


def test_it_counts_what_the_process_sent_on_connections_that_it_opened(
    ledger: EgressLedger, far_end: socket.socket, tmp_path: Path
) -> None:
    sent(far_end, 1000)
    with counted(ledger, clock=lambda: 6.0) as count:
        ledger.record("/s/Put", b"y" * 50_000)
        sent(far_end, 50_000)
        count.note()
    begin, look, end = read_kernel(tmp_path / KERNEL_FILE)
    assert [one.event for one in (begin, look, end)] == ["begin", "look", "end"]
    assert (mine(begin, far_end), mine(look, far_end)) == (1000, 51_000)
    assert (end.messages, end.requests, end.ledger_lines) == (50_000, 1, 1)
    assert (tmp_path / KERNEL_FILE).stat().st_mode & 0o777 == 0o600


def test_what_left_beside_the_ledger_is_named(
    ledger: EgressLedger, far_end: socket.socket, tmp_path: Path
) -> None:
    with counted(ledger, clock=lambda: 6.0) as count:
        ledger.record("/s/Put", b"y" * 50_000)
        sent(far_end, 50_000)
        count.note()
        assert not found_by(tmp_path)["is_problem"]
        sent(far_end, 400_000)
    found = found_by(tmp_path)
    assert found["is_problem"]
    assert "bytes more left than the ledger lists" in str(found["says"])


def test_a_ledger_that_was_cut_off_is_not_the_one_that_the_kernels_record_names(
    ledger: EgressLedger, tmp_path: Path
) -> None:
    with counted(ledger, clock=lambda: 6.0):
        ledger.record("/s/Put", b"y")
        ledger.record("/s/Put", b"z")
    assert not found_by(tmp_path)["is_problem"]
    path = tmp_path / "egress.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    found = found_by(tmp_path)
    assert found["is_problem"]
    assert "the ledger of 2 lines" in str(found["says"])


def test_a_changed_record_is_named_by_line(ledger: EgressLedger, tmp_path: Path) -> None:
    with counted(ledger, clock=lambda: 6.0):
        pass
    path = tmp_path / KERNEL_FILE
    path.write_bytes(path.read_bytes().replace(b'"served":', b'"served":1', 1))
    with pytest.raises(UntrustedError, match=r"egress-kernel\.jsonl:2: the chain is broken"):
        list(read_kernel(path))


@pytest.mark.parametrize("tail", [b'{"index":', b""])
def test_two_processes_and_a_crash_leave_one_chain(
    ledger: EgressLedger, tmp_path: Path, tail: bytes
) -> None:
    with counted(ledger, clock=lambda: 6.0), counted(ledger, clock=lambda: 7.0):
        pass
    with (tmp_path / KERNEL_FILE).open("ab") as file:
        file.write(tail)
    with counted(ledger, clock=lambda: 8.0):
        pass
    sessions = [one.session for one in read_kernel(tmp_path / KERNEL_FILE)]
    assert len(sessions) == 6
    assert len(set(sessions)) == 3


def test_where_the_kernel_does_not_say_nothing_is_claimed(
    ledger: EgressLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_old() -> str:
        return "this kernel is older"

    replaced: Callable[[], str] = too_old
    monkeypatch.setattr(kernel, "obstacle", replaced)
    with counted(ledger, clock=lambda: 6.0):
        ledger.record("/s/Put", b"y")
    (line,) = (json.loads(x) for x in (tmp_path / KERNEL_FILE).read_bytes().splitlines())
    assert (line["event"], line["sent"]) == ("unavailable", 0)
    assert str(found_by(tmp_path)["says"]).startswith("not available here")
