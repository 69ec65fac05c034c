"""`tapestry node status` and `audit` on a node's folder, for people and programs."""

import io
import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tapestry.cli.main import main
from tapestry.data.usage import RoundUse, SourceUse
from tapestry.identity.certificates import create_authority
from tapestry.storage.locks import alone
from tapestry.wire.egress import BLOCKED, EgressLedger, ledger_head
from tapestry_node.corpus_history import record_contribution
from tapestry_node.home import NodeHome, NodeState
from tapestry_node.keeping import keep_policy
from tapestry_node.policy import NodeSettings, Policy
from tapestry_node.progress import ProgressFile
from tests.members import joined_member, spool_contribution

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


def sent(home: NodeHome, *, at: float = 1.0) -> None:
    """Let three requests leave."""
    with closing(EgressLedger(home.egress, to="localhost:1", clock=lambda: at)) as ledger:
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"x" * 1000)
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"x" * 500)
        ledger.record("/tapestry.v1.RoundsService/Report", b"x" * 7)


# status


def test_status_of_a_node_that_has_not_run(run: Run, home: NodeHome) -> None:
    code, said, errors = run("status", home.folder)
    assert (code, errors) == (0, "")
    assert said.splitlines()[0].strip().split(maxsplit=1) == [
        "member",
        f"fr-bnf in loom ({'b' * 16})",
    ]
    assert "not running" in said
    assert "coordinator.example.org:7443, not connected" in said
    assert "2026-03-31 12:00 UTC" in said
    assert "nothing has left this node yet" in said
    assert f"start it: tapestry node run {home.folder}" in said


def test_status_of_a_daemon_that_trains(run: Run, home: NodeHome) -> None:
    sent(home)
    home.save_state(NodeState(round=4, manifest="c" * 64, contributed=3, objective="causal-lm"))
    progress = ProgressFile(home.progress, [], clock=lambda: 1.0)
    for step in range(1, 41):
        progress.step(5, step, 200, loss=2.5, speed=64.0, tokens=64)
    progress.write("going on")
    progress.write("training")  # not held back for half a second
    assert home.progress.stat().st_mode & 0o777 == 0o600
    with alone(home.folder, who="this node"):
        code, said, errors = run("status", home.folder)
        table = json.loads(run("status", home.folder, "--json")[1])
    assert (code, errors) == (0, "")
    words = "round 5: training step 40 of 200, loss 2.500, 64 tokens/s, 2 min 40 s left"
    assert words in said
    assert (table["is_running"], table["activity"]) == (True, words)
    assert (table["newest_checkpoint"], table["contributed_round"]) == (4, 3)
    assert table["now"]["losses"][-1] == [40, 2.5]
    assert table["left"]["chain"] == "whole"
    assert (table["left"]["requests"], table["left"]["bytes"]) == (3, 1507)
    assert table["left"]["today"] == {}, "that was in 1970"
    assert table["damaged"] == []
    table = json.loads(run("status", home.folder, "--json")[1])
    assert (table["is_running"], table["activity"]) == (False, "not running")


def test_status_says_who_else_is_at_work_in_the_folder(run: Run, home: NodeHome) -> None:
    ProgressFile(home.progress, [], clock=lambda: 1.0).now.pid = 0
    with alone(home.folder, who="this node"):
        _code, said, _errors = run("status", home.folder)
    assert f"not running; another command (process {os.getpid()}) works in its folder" in said


def test_what_left_today_is_shown_by_call(run: Run, home: NodeHome) -> None:
    now = datetime.now(UTC).timestamp()
    with closing(EgressLedger(home.egress, to="localhost:1", clock=lambda: now)) as ledger:
        ledger.record("/tapestry.v1.RoundsService/Report", b"x" * 7)
        ledger.record(f"{BLOCKED}socket.connect", b"", to="192.0.2.1")
    _code, said, _errors = run("status", home.folder)
    assert "7 bytes of 7 in all; the chain is whole, head " in said
    assert "stopped attempts of the trainer to reach a network: 1" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("RoundsService")]
    assert row == ["RoundsService/Report", "1", "7"]


def test_a_damaged_file_is_named_and_the_rest_is_shown(run: Run, home: NodeHome) -> None:
    sent(home)
    (home.folder / "state.json").write_text("{")
    home.egress.write_bytes(home.egress.read_bytes().replace(b'"bytes":1000', b'"bytes":1'))
    (home.folder / "node.toml").write_text("[policy]\nmin_quorums = 1\n")
    home.lineage.write_text("{}\n")
    code, said, errors = run("status", home.folder)
    assert (code, errors) == (1, "")
    assert "fr-bnf in loom" in said
    assert "the chain is BROKEN" in said
    assert f"tapestry node audit {home.folder}" in said
    flat = " ".join(said.split())
    assert f"mend or remove: {home.folder}/state.json: cannot be read" in flat
    assert "min_quorums" in flat
    assert f"mend or remove: {home.lineage}: a line near its end" in flat
    table = json.loads(run("status", home.folder, "--json")[1])
    assert len(table["damaged"]) == 4
    assert f"{home.egress}:2: the chain is broken" in table["left"]["problem"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"losses": [1], "step": "x"}'])
def test_progress_that_a_crash_cut_short_does_not_hide_the_status(
    run: Run, home: NodeHome, content: bytes
) -> None:
    home.progress.write_bytes(content)
    code, said, _errors = run("status", home.folder)
    assert code == 0
    assert "fr-bnf" in said


def test_the_policy_in_force_is_the_one_that_the_daemon_read(run: Run, home: NodeHome) -> None:
    strict = Policy(min_inner_steps=100)
    keep_policy(home, strict)
    progress = ProgressFile(home.progress, [], clock=lambda: 1.0)
    progress.now.policy = strict.digest()
    progress.write("waiting")
    home.load_settings()  # written with the defaults: as if it had been edited meanwhile
    with alone(home.folder, who="this node"):
        running = json.loads(run("status", home.folder, "--json")[1])
    stopped = json.loads(run("status", home.folder, "--json")[1])
    assert (running["policy"]["digest"], running["policy"]["is_changed"]) == (strict.digest(), True)
    assert running["policy"]["rules"]["min_inner_steps"] == 100
    assert any(one.startswith("node.toml was changed") for one in running["to_do"])
    assert (stopped["policy"]["digest"], stopped["policy"]["is_changed"]) == (
        Policy().digest(),
        False,
    )


@pytest.mark.parametrize(
    ("flags", "cause"),
    [(["--watch"], "--watch needs a terminal"), (["--watch", "--json"], "choose one")],
)
def test_a_live_screen_is_for_people(
    run: Run, home: NodeHome, flags: list[str], cause: str
) -> None:
    code, said, errors = run("status", home.folder, *flags)
    assert (code, said) == (1, "")
    assert cause in errors


def test_a_contribution_waits_for_a_person_only_where_the_policy_says_so(
    run: Run, home: NodeHome
) -> None:
    spool_contribution(home)
    assert json.loads(run("status", home.folder, "--json")[1])["waiting"] == []
    home.save_settings(NodeSettings(policy=Policy(approval="manual")))
    sent(home, at=datetime.now(UTC).timestamp())
    said = run("status", home.folder)[1]
    assert said.index("to do") < said.index("left today (UTC)"), "a low terminal cuts the end off"
    assert (
        f"round 2: look at what would leave, and decide: tapestry node approve {home.folder}"
        in (" ".join(said.split()))
    )


@pytest.fixture
def waits(home: NodeHome) -> NodeHome:
    """A node whose contribution to round 2, made of two sources, waits for a person."""
    home.save_settings(NodeSettings(policy=Policy(approval="manual")))
    spool_contribution(home)
    names = ("letters", "press\x1b[2J")
    sources = [SourceUse(name=n, category="open", documents=7, tokens=320) for n in names]
    use = RoundUse(corpus="e" * 64, sources=tuple(sources))
    record_contribution(home.corpus, round_number=2, root="d" * 64, use=use)
    return home


def test_a_person_sees_of_which_sources_the_contribution_is_made(
    run: Run, waits: NodeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, said, errors = run("approve", waits.folder)
    assert (code, errors) == (0, "")
    assert "20 steps over 640 tokens" in said
    assert "letters: 7 documents, 320 tokens; press\ufffd[2J: 7 documents, 320 tokens" in said
    assert "nothing is decided, and it goes on waiting" in said
    assert json.loads(run("approve", waits.folder, "--json")[1])["waiting"][0]["sources"][0] == {
        "name": "letters", "category": "open", "documents": 7, "tokens": 320,
    }  # fmt: skip


def test_only_yes_is_an_approval_and_a_refusal_has_a_reason(
    run: Run, waits: NodeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, cause in (
        (("--yes", "--refuse", "no"), "--yes and --refuse say two things: choose one"),
        (("--refuse", " "), "say why; the coordinator keeps the reason"),
        (("--round", "7"), "nothing waits for round 7: there is round 2"),
    ):
        code, said, errors = run("approve", waits.folder, *flags)
        assert (code, said) == (1, "")
        assert cause in errors
    assert not waits.approvals.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, said, _errors = run("approve", waits.folder, "--round", 2)
    assert (code, said.splitlines()[-1]) == (0, "let it leave? [y/N]: approved: it leaves now")
    assert run("approve", waits.folder)[1] == "nothing waits to leave\n"


def test_words_of_others_do_not_steer_the_terminal(run: Run, home: NodeHome) -> None:
    ProgressFile(home.progress, [], clock=lambda: 1.0).write("\x1b]0;taken\x07 [red]round 1")
    with alone(home.folder, who="this node"):
        _code, said, _errors = run("status", home.folder)
    assert "\ufffd]0;taken\ufffd [red]round 1" in said
    assert "\x1b" not in said


def test_why_a_daemon_ended_is_the_first_thing_to_do(run: Run, home: NodeHome) -> None:
    progress = ProgressFile(home.progress, [], clock=lambda: 1.0)
    progress.now.failure = "text.txt:3: not UTF-8"
    progress.write("stopped")
    _code, said, _errors = run("status", home.folder)
    assert "it ended with: text.txt:3: not UTF-8" in said


def test_a_curve_stays_short_and_keeps_its_ends(home: NodeHome) -> None:
    progress = ProgressFile(home.progress, [], clock=lambda: 1.0)
    for step in range(1, 5001):
        progress.step(1, step, 5000, loss=float(step), speed=1.0, tokens=1)
    steps = [step for step, _loss in progress.now.losses]
    assert len(steps) <= 400
    assert (steps[0], steps[-1]) == (1, 5000)
    assert steps == sorted(set(steps))
    progress.step(1, 4000, 5000, loss=0.0, speed=1.0, tokens=1)  # gone on after a crash
    assert [step for step, _loss in progress.now.losses][-1] == 4000
    progress.step(2, 1, 5000, loss=0.0, speed=1.0, tokens=1)
    assert progress.now.losses == [(1, 0.0)]


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
