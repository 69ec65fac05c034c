"""A coordinator's process under a member that floods it: its memory, and what others notice."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from benchmarks.shaped_line import ShapedLine
from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.certificates import SERVER_NAME
from tapestry.identity.membership import IdentityFolder
from tapestry.params.fragments import fragment_digest
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry.v1 import rounds_pb2, rounds_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from tapestry.wire.bulk import FETCH, BulkStub, PutFragment
from tapestry.wire.limits import CALL_SECONDS, CALLS_OF_ONE, MAX_MESSAGE_BYTES, MEBIBYTE
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.settings import NetworkSettings, RoundsSettings
from tapestry_demo.federation import Processes, free_port_pair, tapestry_command, wait_for_port
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.coordinator.small import found_small

pytestmark = pytest.mark.slow

MOST_GROWTH_BYTES = 128 * MEBIBYTE
"""Twelve calls with a message of 4 MiB each and one more on its way, and some for libraries."""
ANSWERS_SECONDS = 20.0
ROUNDS = RoundsSettings(quorum=1, gather_seconds=1.0, deadline_seconds=3600.0)
FRAGMENTS = [bytes(4 * FRAGMENT_ELEMENTS), bytes(8)]


class Caller:
    """A member's connections, with no limits on its own side."""

    def __init__(self, identity: IdentityFolder, address: str, stack: ExitStack) -> None:
        self._identity, self._address, self._stack = identity, address, stack
        self.channel = self.connect()
        self.bulk = BulkStub(self.channel)
        self.transfer = transfer_pb2_grpc.TransferServiceStub(self.channel)

    def connect(self, address: str | None = None, **options: int) -> grpc.Channel:
        certificate, key = self._identity.tls_pair()
        credentials = grpc.ssl_channel_credentials(self._identity.root_pem(), key, certificate)
        named: list[tuple[str, Any]] = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            *((f"grpc.http2.{name}", value) for name, value in options.items()),
        ]
        channel = grpc.secure_channel(address or self._address, credentials, named)
        return self._stack.enter_context(channel)

    def plan(self) -> RoundPlan:
        """Listen until a round is open."""
        watch = rounds_pb2_grpc.RoundsServiceStub(self.channel).WatchPlans(
            rounds_pb2.WatchPlansRequest()
        )
        plan = next(m.plan for m in watch if m.HasField("plan"))
        watch.cancel()
        return RoundPlan.parsed(plan.payload, what="plan")

    def announce(self, plan: RoundPlan, digests: list[bytes], **changes: Any) -> None:
        values = {
            "round": plan.round,
            "base_digest": bytes.fromhex(plan.base),
            "codec": plan.codec,
            "fragment_digests": b"".join(digests),
            **changes,
        }
        self.transfer.OpenUpload(transfer_pb2.OpenUploadRequest(**values), timeout=CALL_SECONDS)

    def put(self, index: int, data: bytes, **options: Any) -> None:
        self.bulk.put_fragment(PutFragment(1, index, data), timeout=CALL_SECONDS, **options)


@dataclass
class Attacked:
    """A coordinator's process, a member that floods it, and one that does not."""

    process: psutil.Process
    address: str
    greedy: Caller
    other: Caller
    plan: RoundPlan
    model: bytes
    """A request for the model's file."""
    before_bytes: int = 0

    def resident_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def require_well(self) -> None:
        """Its memory has not grown much, and it answers others."""
        self.other.transfer.Describe(transfer_pb2.DescribeRequest(), timeout=ANSWERS_SECONDS)
        grown = self.resident_bytes() - self.before_bytes
        assert grown < MOST_GROWTH_BYTES, f"grown by {grown:,} bytes"

    def flood(self, count: int, call: Callable[[int], object], status: grpc.StatusCode) -> None:
        """Call many times; all are refused, and the other member never notices."""
        for number in range(count):
            with pytest.raises(grpc.RpcError) as refusal:
                call(number)
            assert refusal.value.code() is status, refusal.value
            if number % 50 == 0:
                self.require_well()
        self.require_well()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    home = found_small(folder / "fed", FRAGMENT_ELEMENTS + 2, rounds=ROUNDS).home
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
        greedy, other = (
            Caller(joined(home, folder, member), listen, stack) for member in ("greedy", "other")
        )
        files = verify_checkpoint(home.checkpoint(0)).manifest.files
        (digest,) = [entry.digest for entry in files if entry.name == MODEL_FILE]
        at_work = Attacked(
            process=psutil.Process(processes.running["coordinator"].pid),
            address=listen,
            greedy=greedy,
            other=other,
            plan=greedy.plan(),
            model=transfer_pb2.FetchRequest(digest=bytes.fromhex(digest)).SerializeToString(),
        )
        greedy.announce(at_work.plan, list(map(fragment_digest, FRAGMENTS)))
        greedy.put(0, FRAGMENTS[0])
        at_work.before_bytes = at_work.resident_bytes()
        yield at_work


def joined(home: CoordinatorHome, folder: Path, member_id: str) -> IdentityFolder:
    now = time.time()  # noqa: TID251 - the two commands' own clock
    join(make_invitation(home, member_id, now=now), folder / member_id, now=now)
    return NodeHome(folder / member_id).identity


def test_messages_over_the_limit(attacked: Attacked) -> None:
    much = bytes(2 * MAX_MESSAGE_BYTES)
    attacked.flood(40, lambda _: attacked.greedy.put(1, much), grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_messages_that_grow_when_they_are_unpacked(attacked: Attacked) -> None:
    bomb = bytes(64 * MEBIBYTE)
    attacked.flood(
        4,
        lambda _: attacked.greedy.put(1, bomb, compression=grpc.Compression.Gzip),
        grpc.StatusCode.UNIMPLEMENTED,
    )


def test_fragments_that_were_not_announced(attacked: Attacked) -> None:
    def put(number: int) -> None:
        whole = number % 40 == 0
        attacked.greedy.put(1, FRAGMENTS[0] if whole else number.to_bytes(8, "big"))

    attacked.flood(2000, put, grpc.StatusCode.FAILED_PRECONDITION)


def test_announcements_that_follow_each_other(attacked: Attacked) -> None:
    """Each replaces the one before, and none leaves anything."""
    for number in range(400):
        attacked.greedy.announce(attacked.plan, [digest_of(number), digest_of(number + 1)])
        if number % 50 == 0:
            attacked.require_well()
    uploads = attacked.process.open_files()
    assert sum(file.path.endswith(".upload") for file in uploads) == 1
    attacked.require_well()


def test_rounds_that_there_are_not(attacked: Attacked) -> None:
    digests = [digest_of(0), digest_of(1)]
    attacked.flood(
        600,
        lambda number: attacked.greedy.announce(attacked.plan, digests, round=2 + number),
        grpc.StatusCode.FAILED_PRECONDITION,
    )


def test_fragments_that_stop_half_way(attacked: Attacked) -> None:
    line = ShapedLine(attacked.address, up_bytes_per_second=60e6)
    with line, ExitStack() as stack:
        for _ in range(4):
            channel = attacked.greedy.connect(line.address)
            for _call in range(32):
                call = BulkStub(channel).put_fragment.future(PutFragment(1, 0, FRAGMENTS[0]))
                stack.callback(call.cancel)
        deadline = time.monotonic() + ANSWERS_SECONDS
        while line.passed()[0] < 24 * MEBIBYTE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        line.blackhole()
        attacked.require_well()


def test_files_that_nobody_reads(attacked: Attacked) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            channel = attacked.greedy.connect(lookahead_bytes=64, bdp_probe=0)
            for _call in range(32):
                stack.callback(channel.unary_stream(FETCH)(attacked.model).cancel)
        attacked.require_well()
        time.sleep(0.5)
        files = attacked.process.open_files()
        assert sum(file.path.endswith(MODEL_FILE) for file in files) <= CALLS_OF_ONE
        attacked.require_well()


def digest_of(number: int) -> bytes:
    return fragment_digest(number.to_bytes(8, "big"))
