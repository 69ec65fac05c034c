"""`tapestry coordinator ...` as an operator types it, on a folder and from afar."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tapestry.cli.main import main
from tapestry.identity.invitations import decode
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.coordinator.small import found_small
from tests.wire.conftest import ROUNDS
from tests.wire.serving import Coordinator

Run = Callable[..., str]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    serving = Coordinator(found_small(tmp_path / "fed", rounds=ROUNDS))
    yield serving
    serving.stop()


@pytest.fixture
def run(
    coordinator: Coordinator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a command in the coordinator's folder; return what it prints, errors if it fails."""
    monkeypatch.chdir(coordinator.home.folder)
    monkeypatch.setenv("COLUMNS", "160")

    def command(*arguments: str, code: int = 0) -> str:
        assert main(["coordinator", *arguments]) == code, capsys.readouterr()
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return command


def test_what_an_operator_does_and_sees(run: Run, coordinator: Coordinator) -> None:
    assert run("members") == "no members yet: `tapestry coordinator invite MEMBER`\n"
    assert run("rounds") == "no round has opened yet\n"
    assert run("log") == "no operator has done anything yet\n"
    invitation = json.loads(run("invite", "fr-bnf", "--role", "observer", "--json"))
    assert decode(invitation["invitation"]).member_id == "fr-bnf"
    assert invitation["root_fingerprint"].count(":") == 15
    assert "fr-bnf has an open invitation" in run("invite", "fr-bnf", code=1)
    assert run("invite", "fr-bnf", "--resend").startswith("tapestry-invite-1.")
    lines = run("invitations").splitlines()
    assert lines[0].split() == ["member", "role", "state", "made", "expires"]
    assert sorted(line.split()[2] for line in lines[1:]) == ["open", "withdrawn"]
    coordinator.join("is-lbs")
    assert run("members").splitlines()[1].split()[:3] == ["is-lbs", "contributor", "active"]
    assert run("pause", "--reason", "new [bold]disks").startswith("paused since ")
    assert "paused since" in run("status")
    assert "new [bold]disks" in run("log")
    assert run("resume") == "resumed\n"
    assert run("resume") == "nothing to resume: rounds are not paused\n"
    assert json.loads(run("status", "--json"))["paused"] is None
    assert run("revoke", "is-lbs").splitlines() == [
        "is-lbs is not a member any more",
        "members left: 0; the quorum is 2: no round ends until more join",
    ]
    assert "no-one is not a member" in run("revoke", "no-one", code=1)
    actions = json.loads(run("log", "--json"))["actions"]
    assert [row["what"] for row in actions] == ["invite", "invite", "pause", "resume", "revoke"]
    assert {row["who"].split(" ", 1)[1] for row in actions} == {"at the coordinator"}


def test_the_same_from_afar_with_an_operators_certificate(
    run: Run, coordinator: Coordinator, tmp_path: Path
) -> None:
    now = time.time()  # noqa: TID251 - the command's own clock
    homes = {role: tmp_path / role for role in ("operator", "contributor")}
    for role, home in homes.items():
        invitation = replace(coordinator.invite(role, role=role), address=coordinator.door)
        join(invitation, home, now=now)
        NodeHome(home).identity.change_address(coordinator.address)
    afar = ("--as", str(homes["operator"]))
    assert run("pause", "--reason", "why not", *afar).endswith("by operator: why not\n")
    assert "paused since" in run("status", *afar)
    assert run("invite", "x-y", "--role", "observer", *afar).startswith("tapestry-invite-1.")
    assert "x-y" in run("invitations", *afar)
    assert run("revoke", "x-y", *afar).startswith("invitations withdrawn: 1")
    assert run("resume", *afar) == "resumed\n"
    assert [row["who"] for row in json.loads(run("log", "--json", *afar))["actions"]] == [
        "operator"
    ] * 4
    refusal = run("pause", "--as", str(homes["contributor"]), code=1)
    assert "contributor is in this federation as contributor: only an operator" in refusal
    sent = (homes["operator"] / "egress.jsonl").read_text()
    assert "AdminService/Pause" in sent
    assert run("pause", "--dir", ".", *afar, code=2).count("either --dir or --as") == 1
    assert "no node here" in run("pause", "--as", str(tmp_path / "nothing"), code=1)


def test_backup_and_restore(run: Run, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "fed.tar", tmp_path / "elsewhere"
    assert run("backup", str(file)).startswith(f"{file}: checkpoint 0 and all that goes with it")
    assert json.loads(run("backup", str(file), "--json"))["newest_checkpoint"] == 0
    said = run("restore", str(file), str(elsewhere))
    assert said.startswith(f"{elsewhere}: verified; its newest checkpoint is 0\n")
    assert "not an empty folder" in run("restore", str(file), str(elsewhere), code=1)
    assert run("status", "--dir", str(elsewhere)) == run("status").replace(
        str(tmp_path / "fed"), str(elsewhere)
    )
