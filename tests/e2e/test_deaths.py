"""The coordinator's process is killed at every moment of a round, and goes on by itself."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tapestry.checkpoints.manifest import Manifest, verify_lineage
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.envelopes import Envelope
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.database import database_url
from tapestry_coordinator.failpoints import MOMENTS, VARIABLE
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import KeepSettings, NetworkSettings, RoundsSettings
from tapestry_demo.federation import Processes, free_port_pair, tapestry_command
from tests.coordinator.recomputing import recomputed, substance
from tests.coordinator.small import Small, found_small
from tests.e2e.echoing import Echo, enrolled
from tests.forking import Forks

pytestmark = pytest.mark.slow

MEMBERS = ("ar-unc", "fr-bnf")
ROUNDS = 3
DEATHS = (
    "event-uncommitted",  # of the opening
    "plan-recorded",
    "fragment-stored",
    "fragment-stored@2",
    "contribution-received",
    "contribution-durable",
    "event-uncommitted",  # of a contribution
    "receipt-recorded",
    "round-closed",
    "fragment-aggregated@2",
    "checkpoint-built",
    "checkpoint-in-place",
    "event-uncommitted",  # of the publication
    "checkpoint-recorded",
    "checkpoint-durable",
    "receipt-recorded@2:sleep,checkpoint-recorded",  # published before the last answer
    "checkpoint-retired",
)
"""In the order in which they come: each process dies at one, and the next takes up from there."""


class Federation:
    """A coordinator's folder, its process, and two members that echo."""

    def __init__(self, folder: Path, processes: Processes, forks: Forks, stack: ExitStack) -> None:
        self.small: Small = found_small(
            folder / "fed",
            FRAGMENT_ELEMENTS + 2,
            rounds=RoundsSettings(total=ROUNDS, quorum=2, gather_seconds=60, grace_seconds=60),
        )
        self.home, self.logs = self.small.home, folder / "logs"
        self._processes, self._forks = processes, forks
        port = free_port_pair()
        listen, door = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        network = NetworkSettings(
            listen=listen, enrolment_listen=door, address=listen, enrolment_address=door
        )
        changes = {"network": network, "keep": KeepSettings(checkpoints=1)}
        settings = self.home.load_settings().model_copy(update=changes)
        settings_module.save(self.home.folder, settings)
        self.members = [
            stack.enter_context(Echo(enrolled(self.small, folder, m), self.small.layout))
            for m in MEMBERS
        ]

    def serve(self, failpoints: str = "") -> str:
        """Start the coordinator; return its process's name."""
        name = f"coordinator-{len(list(self.logs.glob('*.log'))):02d}"
        command = ["coordinator", "serve", str(self.home.folder), "--failpoints"]
        self._processes.running[name] = self._forks.start(
            command, self.logs / f"{name}.log", environment={VARIABLE: failpoints}
        )
        return name

    def wait_for_death(self, name: str) -> None:
        """Wait until the process has killed itself."""
        code = self._processes.running.pop(name).wait(timeout=180)
        assert code == -signal.SIGKILL, (self.logs / f"{name}.log").read_text()

    def wait_until_listening(self, name: str) -> None:
        """Wait until the process has brought its folder in order and serves."""
        deadline = time.monotonic() + 180
        while "enrolment:" not in (self.logs / f"{name}.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait_until_finished(self) -> None:
        """Wait until every member has been told that no further round is planned."""
        deadline = time.monotonic() + 180
        while not all(member.is_done for member in self.members):
            assert time.monotonic() < deadline, [m.refusals for m in self.members]
            time.sleep(0.05)

    @property
    def lineage(self) -> list[Envelope]:
        with closing(Registry(database_url(self.home))) as registry:
            return list(registry.lineage())


@pytest.fixture
def federations(tmp_path: Path, forks: Forks) -> Iterator[tuple[Federation, Federation]]:
    """Two of the same origin, with the same members."""
    with ExitStack() as stack:
        made = []
        for name in ("calm", "dying"):
            processes = stack.enter_context(Processes(tmp_path / name / "logs"))
            made.append(Federation(tmp_path / name, processes, forks, stack))
        yield made[0], made[1]


def test_every_moment_is_died_at() -> None:
    parts = [part for death in DEATHS for part in death.split(",")]
    assert {part.partition("@")[0].partition(":")[0] for part in parts} == set(MOMENTS)


def test_a_coordinator_killed_at_every_moment_reaches_the_checkpoints_of_one_that_never_was(
    federations: tuple[Federation, Federation], tmp_path: Path
) -> None:
    calm, dying = federations
    calm.serve()
    for death in DEATHS:
        dying.wait_for_death(dying.serve(death))
    dying.wait_until_listening(dying.serve())
    for federation in federations:
        federation.wait_until_finished()
    for member in dying.members:
        assert len(member.receipts) == ROUNDS
        assert member.trained == dict.fromkeys(range(1, ROUNDS + 1), 1), "nothing is trained twice"
    assert list(map(substance, dying.lineage)) == list(map(substance, calm.lineage))
    _require_every_receipt_honoured(dying)
    with closing(Registry(database_url(dying.home))) as registry:
        again = recomputed(dying.home, registry, tmp_path / "again")
    assert [e.payload for e in again] == [e.payload for e in dying.lineage], "to the bit"
    newest = verify_checkpoint(dying.home.checkpoint(ROUNDS))
    assert newest.lineage.newest.round == ROUNDS
    folders = [dying.home.published, dying.home.outer_state(0).parent]
    left = [path.name for folder in folders for path in folder.glob(".*")]
    assert not left, "nothing that was begun and not ended stays on the disk"


def _require_every_receipt_honoured(federation: Federation) -> None:
    """What was acknowledged is recorded as it was, and counted once."""
    verify_lineage(federation.lineage)
    counted = [
        (manifest.round, part.member_id, part.contribution)
        for manifest in (Manifest.parsed(e.payload, what="manifest") for e in federation.lineage)
        if manifest.made is not None
        for part in manifest.made.participation
    ]
    acknowledged = [
        (number, member.membership.member_id, receipt.contribution)
        for member in federation.members
        for number, receipt in member.receipts.items()
    ]
    assert sorted(counted) == sorted(acknowledged)
    assert len(counted) == len(MEMBERS) * ROUNDS


def test_without_the_flag_the_variable_does_nothing(
    federations: tuple[Federation, Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, _dying = federations
    monkeypatch.setenv(VARIABLE, "plan-recorded")
    command = tapestry_command("coordinator", "serve", str(calm.home.folder))
    calm._processes.start("coordinator", command)  # noqa: SLF001 - as `serve`, without the flag
    calm.wait_until_finished()
