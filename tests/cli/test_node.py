"""`tapestry node status` and `audit` on a node's folder, for people and programs."""

import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tapestry.cli.main import main
from tapestry.identity.certificates import create_authority
from tapestry.wire.egress import EgressLedger, ledger_head
from tapestry_node.home import NodeHome, NodeState
from tests.members import joined_member

Run = Callable[..., tuple[int, str, str]]
JOINED = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tapestry node ...`; return exit code, output, and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["node", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    """A member's folder, as joining makes it."""
    return joined_member(
        tmp_path / "node",
        create_authority("loom", now=JOINED),
        member_id="fr-bnf",
        issued=JOINED,
        address="coordinator.example.org:7443",
    )


def sent(home: NodeHome) -> None:
    """Let three requests leave."""
    with closing(EgressLedger(home.egress, to="localhost:1", clock=lambda: 1.0)) as ledger:
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"x" * 1000)
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"x" * 500)
        ledger.record("/tapestry.v1.RoundsService/Report", b"x" * 7)


# status


def test_status_of_a_node_that_has_not_run(run: Run, home: NodeHome) -> None:
    code, said, errors = run("status", home.folder)
    assert (code, errors) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in said.splitlines()[:1])
    assert rows == {"member": "id            fr-bnf"}
    assert "coordinator.example.org:7443" in said
    assert "2026-03-31 12:00 UTC" in said


def test_status_for_a_program(run: Run, home: NodeHome) -> None:
    home.save_state(NodeState(round=4, manifest="c" * 64, contributed=3, objective="causal-lm"))
    home.progress.write_text(json.dumps({"doing": "training", "step": 7}), encoding="utf-8")
    code, said, errors = run("status", home.folder, "--json")
    assert (code, errors) == (0, "")
    assert json.loads(said) == {
        "member_id": "fr-bnf",
        "federation": "loom",
        "coordinator": "coordinator.example.org:7443",
        "certificate_until": "2026-03-31 12:00 UTC",
        "newest_checkpoint": 4,
        "contributed_round": 3,
        "doing": "training",
        "step": 7,
    }


def test_a_damaged_state_is_one_line(run: Run, home: NodeHome) -> None:
    (home.folder / "state.json").write_text("{")
    code, said, errors = run("status", home.folder)
    assert (code, said) == (1, "")
    (line,) = errors.splitlines()
    assert "state.json: cannot be read" in line


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_progress_that_a_crash_cut_short_does_not_hide_the_status(
    run: Run, home: NodeHome, content: bytes
) -> None:
    home.progress.write_bytes(content)
    code, said, _errors = run("status", home.folder)
    assert code == 0
    assert "fr-bnf" in said


@pytest.mark.parametrize("name", ["tls.crt", "membership.json"])
def test_a_damaged_identity_is_one_line(run: Run, home: NodeHome, name: str) -> None:
    (home.identity.folder / name).write_bytes(b"damaged")
    code, said, errors = run("status", home.folder)
    assert (code, said) == (1, "")
    assert len(errors.splitlines()) == 1


# audit


def test_an_audit_adds_up_what_left_by_call(run: Run, home: NodeHome) -> None:
    sent(home)
    code, said, errors = run("audit", home.folder)
    assert (code, errors) == (0, "")
    total, head, rounds, transfer, kernel = said.splitlines()
    assert head == f"head {ledger_head(home.egress)}"
    assert total == f"the chain of {home.egress} is whole: 3 requests, 1,507 bytes of messages"
    assert rounds.split() == ["RoundsService/Report", "1", "requests", "7", "bytes"]
    assert transfer.split() == ["TransferService/PutFragment", "2", "requests", "1,500", "bytes"]
    assert kernel.startswith("beside it: not available here")


def test_an_audit_for_a_program(run: Run, home: NodeHome) -> None:
    sent(home)
    code, said, errors = run("audit", home.folder, "--json")
    assert (code, errors) == (0, "")
    found = json.loads(said)
    assert found["problems"] == []
    assert found["by_round"] == {"0": found["by_call"]}
    shown = ("ledger", "chain", "head", "requests", "bytes", "by_call")
    assert {name: found[name] for name in shown} == {
        "ledger": str(home.egress),
        "chain": "whole",
        "head": ledger_head(home.egress),
        "requests": 3,
        "bytes": 1507,
        "by_call": {
            "RoundsService/Report": {"requests": 1, "bytes": 7},
            "TransferService/PutFragment": {"requests": 2, "bytes": 1500},
        },
    }


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_audit_of_a_changed_record_fails_and_names_the_line(
    run: Run, home: NodeHome, as_json: list[str]
) -> None:
    sent(home)
    home.egress.write_bytes(home.egress.read_bytes().replace(b'"bytes":1000', b'"bytes":1'))
    code, said, errors = run("audit", home.folder, *as_json)
    assert code == 1
    if as_json:
        found = json.loads(said)
        assert (found["chain"], found["broken_line"]) == ("broken", 2)
        (line,) = found["problems"]
    else:
        assert said.startswith("the chain is BROKEN")
        (line,) = errors.splitlines()
    assert f"{home.egress}:2: the chain is broken: line 1 is not what it was" in line


def test_nothing_has_left_a_node_that_has_not_run(run: Run, home: NodeHome) -> None:
    code, said, errors = run("audit", home.folder)
    assert (code, said) == (1, "")
    assert "nothing has left this node yet" in errors


def test_running_without_text_says_what_to_add(run: Run, home: NodeHome) -> None:
    code, said, errors = run("run", home.folder)
    assert (code, said) == (1, "")
    assert errors.startswith("tapestry: no text given: add --data PATH (a file or a folder), or ")
    assert f"{home.folder}/corpus.toml (`tapestry node corpus init PATH`" in errors
    code, _said, errors = run("finish", home.folder / "out", "--dir", home.folder)
    assert code == 1
    assert errors.startswith("tapestry: no text given: add --data PATH (a file or a folder), or ")
    assert f"{home.folder}/corpus.toml (`tapestry node corpus init PATH`" in errors


def test_finishing_before_the_first_round_says_what_to_do(
    run: Run, home: NodeHome, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("warp\n\nweft", encoding="utf-8")
    out = tmp_path / "out"
    code, said, errors = run("finish", out, "--dir", home.folder, "--data", text)
    assert (code, said) == (1, "")
    assert "no consensus checkpoint is here yet: run the node first" in errors
    assert not out.exists()
