"""Two coordinators with a PostgreSQL server and a store of blobs, and members that do not train.

The coordinators are real processes. Members are the tests' own, over mutual TLS, so that a round
takes no training.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from tapestry.checkpoints.policy import save_policy
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.config import parse_settings
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.events import Event
from tapestry_coordinator.failpoints import VARIABLE
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.mirroring import Mirror, blobs_of
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import RoundsSettings, StorageSettings
from tapestry_demo.federation import Processes, free_port_pair
from tests.coordinator.small import FOUNDED_AT, Small, changed_policy, found_small
from tests.e2e.live import wait_for
from tests.forking import Forks
from tests.servers import Postgres, Store
from tests.wire.serving import CALL_SECONDS, Line, Member, Watch

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

    def decide(self, **tables: Mapping[str, Any]) -> None:
        """Change tables of the policy, before anybody serves."""
        policy = changed_policy(self.small.policy, **tables)
        for name in self.ports:
            save_policy(self.home(name).policy, policy)
        self.ask(lambda registry: registry.adopt_policy(policy, now=FOUNDED_AT))

    def serve(self, name: str, *, failpoints: str = "") -> None:
        command = ["coordinator", "serve", str(self.folder / name), "--failpoints"]
        log = self.folder / "logs" / f"{name}.log"
        self.processes.running[name] = self.forks.start(
            command, log, environment={VARIABLE: failpoints}
        )

    def serve_both(self) -> None:
        """Let one lead and the other stand by."""
        self.serve("north")
        self.leads("north")
        self.serve("south")
        self.wait(lambda: "standing by: " in self.log("south"))

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def wait(self, condition: Callable[[], bool], *, seconds: float = 180.0) -> None:
        wait_for(condition, self.processes, self.log, seconds=seconds)

    def leads(self, name: str, times: int = 1) -> None:
        """Wait until a coordinator listens."""
        self.wait(lambda: self.log(name).count("enrolment:") >= times)
        self.leader = name

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes.running[name].send_signal(number)

    def wait_for_death(self, name: str) -> None:
        """Wait until a process has killed itself at its failpoint."""
        process = self.processes.running[name]
        self.wait(lambda: process.poll() is not None)
        assert self.processes.running.pop(name).wait() == -signal.SIGKILL, self.log(name)

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
        return self.ask(lambda registry: list(registry.lineage()))

    def events(self, number: int) -> list[Event]:
        return [event for _at, event in self.ask(lambda r: r.round_events(number))]

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


@contextmanager
def two_folders(folder: Path, forks: Forks, postgres: Postgres, store: Store) -> Iterator[Shared]:
    """Two folders: the one in which the federation was founded, and one to stand by."""
    rounds = RoundsSettings(
        quorum=2, gather_seconds=60.0, grace_seconds=0.0, deadline_seconds=600.0
    )
    small = found_small(folder / "north", elements=3, rounds=rounds, learning_rate=0.5)
    (folder / "north" / "coordinator.db").unlink()
    url = postgres.new_database()
    storage = parse_settings(
        {"database": url, "blobs": f"{store.url}/{folder.name}", "endpoint": store.endpoint},
        StorageSettings,
        where="test",
    )
    ports = {name: free_port_pair() for name in ("north", "south")}
    _save(small.home, storage, ports["north"])
    (folder / "south").mkdir()
    for name in ("ca", "identity"):
        shutil.copytree(folder / "north" / name, folder / "south" / name)
    for name in ("coordinator.toml", "policy.toml"):
        shutil.copy(folder / "north" / name, folder / "south" / name)
    _save(CoordinatorHome(folder / "south"), storage, ports["south"])
    (genesis,) = small.lineage
    blobs = blobs_of(small.home)
    assert blobs is not None
    Mirror(small.home, blobs).put_founding(genesis)
    registry = Registry(url)
    registry.add_genesis(payload_digest(genesis), genesis)
    registry.adopt_policy(small.policy, now=FOUNDED_AT)
    registry.close()
    with Processes(folder / "logs") as processes:
        federation = Shared(folder, small, processes, forks, postgres, store, url, ports)
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
