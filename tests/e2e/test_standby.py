"""Two coordinators, a PostgreSQL server, a store of blobs; any of them goes away.

The coordinators are real processes. Members are the tests' own, over mutual TLS, so that a round
takes no training.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
import numpy as np
import pytest

from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.config import parse_settings
from tapestry.identity.envelopes import Envelope
from tapestry.v1 import transfer_pb2
from tapestry.wire.messages import envelope_message
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.mirroring import Mirror, blobs_of
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import Arrived, Published
from tapestry_coordinator.settings import RoundsSettings, StorageSettings
from tapestry_coordinator.status import status_of
from tapestry_demo.federation import Processes, free_port_pair
from tests.coordinator.small import FOUNDED_AT, Small, found_small
from tests.forking import Forks
from tests.servers import Postgres, Store, running_store
from tests.wire.serving import CALL_SECONDS, Line, Member, Watch

pytestmark = pytest.mark.slow

T = TypeVar("T")


@dataclass
class Shared:
    """A federation whose coordinators share database and store."""

    folder: Path
    small: Small
    processes: Processes
    forks: Forks
    postgres: Postgres
    store: Store
    url: str
    ports: dict[str, int]
    leader: str = "north"
    stack: ExitStack = field(default_factory=ExitStack)

    # What a member of the tests asks of a coordinator

    @property
    def federation(self) -> str:
        return self.small.home.load_genesis().origin.federation

    @property
    def root_pem(self) -> bytes:
        return self.small.home.load_authority().certificate_pem

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports[self.leader]}"

    @property
    def door(self) -> str:
        return f"127.0.0.1:{self.ports[self.leader] + 1}"

    # Coordinators

    def home(self, name: str) -> CoordinatorHome:
        return CoordinatorHome(self.folder / name)

    def serve(self, name: str) -> None:
        command = ["coordinator", "serve", str(self.folder / name)]
        log = self.folder / "logs" / f"{name}.log"
        self.processes.running[name] = self.forks.start(command, log)

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def wait(self, condition: Callable[[], bool], *, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "\n".join(
                f"{name}: {self.log(name)[-3000:]}" for name in self.processes.running
            )
            time.sleep(0.05)

    def leads(self, name: str, times: int = 1) -> None:
        """Wait until a coordinator listens."""
        self.wait(lambda: self.log(name).count("enrolment:") >= times)
        self.leader = name

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes.running[name].send_signal(number)

    def kill(self, name: str) -> None:
        process = self.processes.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    # Members

    def join(self, member_id: str) -> Member:
        member = Member(self, member_id)  # type: ignore[arg-type]
        invitation = make_invitation(
            self.home("north"), member_id, now=datetime.now(UTC).timestamp()
        )
        with member.knocking() as stub:
            response = stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
        member.certificate = response.certificate
        return member

    def connect(self, member: Member) -> tuple[Line, Watch]:
        """Connect as soon as somebody listens, and listen in turn."""

        def connected() -> tuple[Line, Watch]:
            with ExitStack() as stack:
                line = stack.enter_context(member.connected(address=self.address))
                watch = line.watch()
                self.stack.enter_context(stack.pop_all())
            return line, watch

        return again(connected)

    def manifests(self) -> list[Envelope]:
        return self.ask(Registry.lineage)

    def ask(self, question: Callable[[Registry], T]) -> T:
        registry = Registry(self.url)
        try:
            return question(registry)
        finally:
            registry.close()


def again(call: Callable[[], T], *, seconds: float = 60.0) -> T:
    """Do what a node does: try again while the other side is not available."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def commit(line: Line, plan: RoundPlan, delta: list[float]) -> Envelope:
    """Send and commit a contribution, again and again while the other side is not available."""
    return again(lambda: line.commit(line.sent(plan, np.array(delta, np.float32))))


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as one:
        yield one


@pytest.fixture
def shared(tmp_path: Path, forks: Forks, postgres: Postgres, store: Store) -> Iterator[Shared]:
    """Two folders: the one in which the federation was founded, and one to stand by."""
    rounds = RoundsSettings(
        quorum=2, gather_seconds=60.0, grace_seconds=0.0, deadline_seconds=600.0
    )
    small = found_small(tmp_path / "north", elements=3, rounds=rounds, learning_rate=0.5)
    (tmp_path / "north" / "coordinator.db").unlink()
    url = postgres.new_database()
    storage = parse_settings(
        {"database": url, "blobs": f"{store.url}/{tmp_path.name}", "endpoint": store.endpoint},
        StorageSettings,
        where="test",
    )
    ports = {name: free_port_pair() for name in ("north", "south")}
    _save(small.home, storage, ports["north"])
    (tmp_path / "south").mkdir()
    for name in ("ca", "identity"):
        shutil.copytree(tmp_path / "north" / name, tmp_path / "south" / name)
    for name in ("coordinator.toml", "policy.toml"):
        shutil.copy(tmp_path / "north" / name, tmp_path / "south" / name)
    _save(CoordinatorHome(tmp_path / "south"), storage, ports["south"])
    (genesis,) = small.lineage
    blobs = blobs_of(small.home)
    assert blobs is not None
    Mirror(small.home, blobs).put_founding(genesis)
    registry = Registry(url)
    registry.add_genesis(payload_digest(genesis), genesis)
    registry.adopt_policy(small.policy, now=FOUNDED_AT)
    registry.close()
    with Processes(tmp_path / "logs") as processes:
        federation = Shared(tmp_path, small, processes, forks, postgres, store, url, ports)
        with federation.stack:
            yield federation
        for process in processes.running.values():
            process.send_signal(signal.SIGCONT)


def _save(home: CoordinatorHome, storage: StorageSettings, port: int) -> None:
    settings = home.load_settings()
    network = settings.network.model_copy(
        update={"listen": f"127.0.0.1:{port}", "enrolment_listen": f"127.0.0.1:{port + 1}"}
    )
    changed = settings.model_copy(update={"network": network, "storage": storage})
    settings_module.save(home.folder, changed)


def test_the_standby_finishes_the_round_of_a_leader_that_was_killed(
    shared: Shared, record_property: Callable[[str, object], None]
) -> None:
    shared.serve("north")
    shared.leads("north")
    shared.serve("south")
    shared.wait(lambda: "standing by: " in shared.log("south"))
    assert f":{shared.folder / 'north'} leads" in shared.log("south")
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), _other = [shared.connect(member) for member in members]
    plan = watch.until_plan()
    signed = line.sent(plan, np.array([0.5, 0.25, 0.0], np.float32))
    receipt = line.commit(signed)
    shared.wait((shared.folder / "south" / "published" / "round-000000").is_dir)

    shared.kill("north")
    killed = time.monotonic()
    shared.leader = "south"
    (line, _watch), (other, watch) = [shared.connect(member) for member in members]
    took = time.monotonic() - killed
    record_property("failover_seconds", round(took, 1))
    sys.stderr.write(f"failover: {took:.1f} s from SIGKILL to the first calls served\n")

    assert watch.until_plan() == plan, "the round goes on"
    assert line.commit(signed) == receipt
    commit(other, plan, [0.25, 0.75, 1.0])
    shared.wait(lambda: len(shared.manifests()) == 2)
    shared.wait((shared.folder / "south" / "published" / "round-000001").is_dir)
    verified = verify_checkpoint(shared.folder / "south" / "published" / "round-000001")
    assert verified.manifest.made is not None
    assert [p.member_id for p in verified.manifest.made.participation] == ["a-lib", "b-lib"]
    assert "fetching the contribution of a-lib" in shared.log("south")
    events = [event for _at, event in shared.ask(lambda registry: registry.round_events(1))]
    assert len([event for event in events if isinstance(event, Published)]) == 1

    shared.serve("north")  # it comes back, and stands by
    shared.wait(lambda: f":{shared.folder / 'south'} leads" in shared.log("north"))
    shared.send("south", signal.SIGTERM)
    shared.leads("north")
    assert status_of(shared.home("north"))["newest_checkpoint"] == 1
    fetched = shared.folder / "north" / "published" / "round-000001"
    assert verify_checkpoint(fetched).manifest_digest == verified.manifest_digest
    assert shared.postgres.password not in shared.log("north") + shared.log("south")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in shared.log("north") + shared.log("south")


def test_a_leader_that_was_paused_past_its_lease_writes_nothing(shared: Shared) -> None:
    shared.serve("north")
    shared.leads("north")
    shared.serve("south")
    shared.wait(lambda: "standing by: " in shared.log("south"))
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), (other, _watch) = [shared.connect(member) for member in members]
    plan = watch.until_plan()
    commit(line, plan, [0.5, 0.25, 0.0])
    late = other.sent(plan, np.array([0.0, 0.5, 0.5], np.float32))  # all but the signature

    shared.send("north", signal.SIGSTOP)
    shared.leads("south")
    (_line, _watch), (new, _watch) = [shared.connect(member) for member in members]
    commit(new, plan, [0.25, 0.75, 1.0])
    shared.wait(lambda: len(shared.manifests()) == 2)

    def recorded() -> tuple[list[Envelope], list[str]]:
        events = shared.ask(lambda registry: registry.round_events(1))
        arrived = [e.digest for _at, e in events if isinstance(e, Arrived)]
        return shared.manifests(), arrived

    before = recorded()
    pending = other.transfer.Commit.future(_commit_request(late), timeout=CALL_SECONDS)
    shared.send("north", signal.SIGCONT)
    error = pending.exception()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE, "it waited at the paused leader"
    shared.wait(lambda: f":{shared.folder / 'south'} leads" in shared.log("north"))
    assert recorded() == before
    with (
        pytest.raises(grpc.RpcError) as refused,
        members[0].connected(address=f"127.0.0.1:{shared.ports['north']}") as old,
    ):
        old.describe()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "nobody listens there any more"


def _commit_request(envelope: Envelope) -> transfer_pb2.CommitRequest:
    return transfer_pb2.CommitRequest(contribution=envelope_message(envelope))


def test_database_and_store_go_away_for_a_while_and_the_round_waits(shared: Shared) -> None:
    shared.serve("north")
    shared.leads("north")
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), (other, _watch) = [shared.connect(member) for member in members]
    plan = watch.until_plan()

    shared.postgres.stop()
    with pytest.raises(grpc.RpcError) as gone:
        line.describe()
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "database does not answer now: everything goes on when it does" in gone.value.details()
    assert "127.0.0.1" not in gone.value.details(), "a member learns nothing of the server"
    shared.postgres.start()
    commit(line, plan, [0.5, 0.25, 0.0])

    signed = other.sent(plan, np.array([0.25, 0.75, 1.0], np.float32))
    shared.store.stop()
    with pytest.raises(grpc.RpcError) as gone:
        other.commit(signed)
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the store cannot be used now" in gone.value.details()
    assert len(shared.ask(lambda registry: registry.contributions(1))) == 1, "no receipt without it"
    shared.store.start()
    again(lambda: other.commit(signed))
    shared.wait(lambda: len(shared.manifests()) == 2)
    verify_checkpoint(shared.folder / "north" / "published" / "round-000001")
    assert shared.ask(Registry.exclusions) == [], "nobody is blamed for an outage"
    assert "Traceback" not in shared.log("north")
    assert "leads" not in shared.log("north"), "it has led all the time"
