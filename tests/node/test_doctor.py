"""What the doctor finds on a machine that can take part, and on one that cannot yet."""

import json
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.cli.main import main
from tapestry.identity.certificates import create_authority
from tapestry.identity.invitations import Invitation
from tapestry.wire.egress import read_ledger
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_node.before_joining import examine_before
from tapestry_node.doctor import examine
from tapestry_node.hardware import Finding
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.conftest import Federation
from tests.e2e.live import Live, served_copy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A coordinator's process that serves a copy of the small federation."""
    with served_copy(federation, tmp_path_factory.mktemp("doctor")) as made:
        yield made


@pytest.fixture(scope="module")
def node(live: Live) -> NodeHome:
    now = datetime.now(UTC).timestamp()
    join(make_invitation(CoordinatorHome(live.home.folder), "fr-bnf", now=now), live.folder / "n",
         now=now)  # fmt: skip
    (live.folder / "text.txt").write_text("un livre, puis un autre\n\n" * 40)
    return NodeHome(live.folder / "n")


def look(node: NodeHome, data: Path, *, now: float | None = None) -> Iterator[Finding]:
    moment = datetime.now(UTC).timestamp() if now is None else now
    return examine(node, [data], now=moment)


def found(node: NodeHome, data: Path, *, now: float | None = None) -> dict[str, Finding]:
    return {finding.about: finding for finding in look(node, data, now=now)}


def first(about: str, node: NodeHome, data: Path, *, now: float | None = None) -> Finding:
    """Look until that is found."""
    return next(finding for finding in look(node, data, now=now) if finding.about == about)


def test_a_machine_that_can_take_part_has_no_problem(live: Live, node: NodeHome) -> None:
    before = len(list(read_ledger(node.egress)))
    findings = found(node, live.folder / "text.txt")
    assert list(findings) == [
        *("keys", "certificate", "settings", "text", "open files", "isolation"),
        *("coordinator", "clock", "bandwidth", "disk", "memory"),
    ]
    assert not [one for one in findings.values() if one.verdict == "problem"]
    assert "answers in" in findings["coordinator"].found
    assert "Mbit/s" in findings["bandwidth"].found
    assert "1 file, 0.0 MB" in findings["text"].found
    calls = {d.call.rsplit("/", 1)[-1] for d in list(read_ledger(node.egress))[before:]}
    assert calls == {"ListExclusions", "Describe", "Lineage", "Fetch"}, "what it sent is on record"


def test_what_is_wrong_is_named_with_what_to_do(
    live: Live, node: NodeHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = NodeHome(tmp_path / "node")
    shutil.copytree(node.folder, broken.folder)
    (broken.identity.folder / "signing.key").chmod(0o644)
    membership = broken.identity.folder / "membership.json"
    membership.write_text(membership.read_text().replace(str(live.port), "1"))
    (broken.folder / "node.toml").write_text("[policy]\nmin_tokens = 9\nmax_tokens = 3\n")
    past = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    findings = found(broken, tmp_path / "no-such.txt", now=past)
    problems = {name for name, one in findings.items() if one.verdict == "problem"}
    assert problems == {"keys", "certificate", "settings", "text", "coordinator"}
    assert "contradict each other" in findings["settings"].found
    assert "set the clock" in findings["certificate"].remedy
    assert "firewall" in findings["coordinator"].remedy
    (broken.folder / "node.toml").unlink()
    assert "no-such.txt" in first("text", broken, tmp_path / "no-such.txt").found
    capsys.readouterr()
    assert (
        main(["node", "doctor", str(broken.folder), "--data", str(tmp_path / "no-such.txt")]) == 1
    )
    assert "to mend first" in capsys.readouterr().out


def test_a_clock_that_is_behind_is_told_by_the_newest_checkpoint(
    live: Live, node: NodeHome, federation: Federation
) -> None:
    envelope = read_envelope(federation.genesis / MANIFEST_FILE, what="manifest")
    made = Manifest.parsed(envelope.payload, what="manifest").created_at
    clock = first("clock", node, live.folder / "text.txt", now=made - 3600)
    assert clock.verdict == "problem"
    assert "checkpoint 0 was made 3,600 s in this machine's future" in clock.found
    assert first("clock", node, live.folder / "text.txt", now=made + 60).verdict == "ok"


# Before joining


def before(
    folder: Path, invitation: Invitation | None, *, parameters: int = 0, now: float | None = None
) -> dict[str, Finding]:
    moment = datetime.now(UTC).timestamp() if now is None else now
    (folder / "text.txt").write_text("un livre, puis un autre\n\n" * 40)
    found = examine_before(
        folder / "node", [folder / "text.txt"], invitation, parameters=parameters, now=moment
    )
    return {finding.about: finding for finding in found}


def test_before_joining_the_machine_is_looked_at_and_the_invitation_not_used_up(
    live: Live, tmp_path: Path
) -> None:
    now = datetime.now(UTC).timestamp()
    invitation = make_invitation(CoordinatorHome(live.home.folder), "eu-lib", now=now)
    findings = before(tmp_path, invitation, parameters=10**6)
    assert list(findings) == [
        *("invitation", "text", "open files", "isolation", "coordinator", "disk", "memory")
    ]
    assert {one.verdict for one in findings.values()} <= {"ok", "warning"}
    assert "for eu-lib in " in findings["invitation"].found
    assert "answers in" in findings["coordinator"].found
    assert "0.02 GB needed for 1,000,000 parameters" in findings["memory"].found
    assert not (tmp_path / "node").exists()
    join(invitation, tmp_path / "node", now=now)


def test_before_joining_another_coordinator_a_dead_line_and_a_wrong_clock_are_problems(
    live: Live, tmp_path: Path
) -> None:
    now = datetime.now(UTC).timestamp()
    invitation = make_invitation(CoordinatorHome(live.home.folder), "de-lib", now=now)
    stranger = create_authority("elsewhere", now=datetime.now(UTC)).certificate_pem.decode()
    other = replace(invitation, root_certificate=ssl.PEM_cert_to_DER_cert(stranger))
    assert (
        "is not the coordinator of the invitation's" in before(tmp_path, other)["coordinator"].found
    )
    nobody = before(tmp_path, replace(invitation, address="127.0.0.1:1"), parameters=10**15)
    problems = {name for name, one in nobody.items() if one.verdict == "problem"}
    assert problems == {"coordinator", "disk", "memory"}
    assert "127.0.0.1:1 does not answer" in nobody["coordinator"].found
    for moment, says in ((now + 10**8, "ask for a new one"), (now - 10**8, "set the clock")):
        finding = before(tmp_path, invitation, now=moment)["invitation"]
        assert finding.verdict == "problem"
        assert says in finding.remedy


def test_the_doctor_of_a_folder_without_a_node_looks_at_the_machine(
    node: NodeHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "doctor", str(tmp_path / "new"), "--json"]) == 0
    said = capsys.readouterr()
    abouts = [one["about"] for one in json.loads(said.out)["findings"]]
    assert abouts == ["open files", "isolation", "disk", "memory"]
    assert f"no node in {tmp_path / 'new'}: looking at what can be before joining" in said.err
    assert main(["node", "doctor", str(node.folder), "--parameters", "5"]) == 1
    assert "has joined already" in capsys.readouterr().err
