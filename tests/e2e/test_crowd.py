"""Strangers at a coordinator's ports: ten thousand connections, half a handshake, garbage."""

import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
import pytest

from tapestry.errors import UnavailableError
from tapestry.v1 import transfer_pb2
from tapestry.wire.limits import MEBIBYTE, MOST_CONNECTIONS
from tapestry.wire.statuses import errors_from_status
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.settings import NetworkSettings
from tapestry_demo.federation import Processes, free_port_pair, tapestry_command, wait_for_port
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.coordinator.small import found_small
from tests.e2e.test_hostile_member import ANSWERS_SECONDS, ROUNDS, Caller, joined

pytestmark = pytest.mark.slow

CONNECTIONS = 10_000
BATCH = 1000
MOST_GROWTH_BYTES = 128 * MEBIBYTE
NEWCOMER_SECONDS = 60.0


@dataclass
class Besieged:
    """A coordinator's process, and a member that was connected before the strangers came."""

    home: CoordinatorHome
    process: psutil.Process
    ports: tuple[int, int]
    """Of members and of enrolment."""
    member: Caller
    log: Path
    before_bytes: int

    def require_well(self) -> None:
        """It answers its member, and its memory has not grown much."""
        self.member.transfer.Describe(transfer_pb2.DescribeRequest(), timeout=ANSWERS_SECONDS)
        grown = int(self.process.memory_info().rss) - self.before_bytes
        assert grown < MOST_GROWTH_BYTES, f"grown by {grown:,} bytes"


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    folder = tmp_path_factory.mktemp("besieged")
    home = found_small(folder / "fed", 2, rounds=ROUNDS).home
    port = free_port_pair()
    listen, door = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    network = NetworkSettings(
        listen=listen, enrolment_listen=door, address=listen, enrolment_address=door
    )
    settings_module.save(home.folder, home.load_settings().model_copy(update={"network": network}))
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(folder / "logs"))
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=180)
        member = Caller(joined(home, folder, "early"), listen, stack)
        member.plan()
        process = psutil.Process(processes.running["coordinator"].pid)
        yield Besieged(
            home=home,
            process=process,
            ports=(port, port + 1),
            member=member,
            log=folder / "logs/coordinator.log",
            before_bytes=int(process.memory_info().rss),
        )


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process a socket for every stranger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 1000:
        pytest.skip(f"this user may open {hard:,} files; the test needs {CONNECTIONS + 1000:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CONNECTIONS + 1000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def half_a_hello() -> bytes:
    """The first half of what a TLS client says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="coordinator.tapestry.internal")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


def strangers_at(besieged: Besieged, first_words: bytes, stack: ExitStack) -> None:
    """Connect to both ports; every tenth stranger says something and no more."""
    for number in range(CONNECTIONS):
        stranger = stack.enter_context(socket.socket())
        stranger.settimeout(0)
        with suppress(BlockingIOError):
            stranger.connect(("127.0.0.1", besieged.ports[number % 2]))
        if number % 10 == 0:
            with suppress(OSError):
                stranger.send(first_words)
        if number % BATCH == BATCH - 1:
            besieged.require_well()


def when_there_is_room(act: Callable[[], object]) -> None:
    """Try until it works: handshakes that nobody goes on with make room one after the other."""
    deadline = time.monotonic() + NEWCOMER_SECONDS
    while True:
        try:
            act()
        except UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        else:
            return


def test_garbage(besieged: Besieged) -> None:
    random = Random(1)  # noqa: S311 - the same garbage every time
    requests = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.randbytes(200),
        b"\x16\x03\x01\xff\xff" + random.randbytes(500),
        *(random.randbytes(random.randrange(1, 4000)) for _ in range(100)),
    ]
    for port in besieged.ports:
        for request in requests:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=20)
            with stranger, suppress(OSError):
                stranger.sendall(request)
                stranger.shutdown(socket.SHUT_WR)
                while answer := stranger.recv(4096):  # an alert of TLS, and the end
                    assert answer[:1] == b"\x15"
    besieged.require_well()
    assert "Traceback" not in besieged.log.read_text()


def test_ten_thousand_connections(besieged: Besieged, many_files: None) -> None:  # noqa: ARG001
    with ExitStack() as stack:
        strangers_at(besieged, half_a_hello(), stack)
        assert besieged.process.num_fds() < 2 * MOST_CONNECTIONS + 200
        besieged.require_well()
        now = time.time()  # noqa: TID251 - the command's own clock
        invitation = make_invitation(besieged.home, "late", now=now)
        folder = besieged.home.folder.parent / "late"
        when_there_is_room(lambda: join(invitation, folder, now=now))
        late = Caller(NodeHome(folder).identity, f"127.0.0.1:{besieged.ports[0]}", stack)

        def describe() -> None:
            with errors_from_status("the coordinator"):
                late.transfer.Describe(transfer_pb2.DescribeRequest(), timeout=ANSWERS_SECONDS)

        when_there_is_room(describe)
    assert "connections and files are open" in besieged.log.read_text()
