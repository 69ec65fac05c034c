"""The command `tapestry`: exit codes, one line for a mistake, help that is quick and whole."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from inspect import cleandoc
from pathlib import Path
from typing import Any

import pytest
import typer

from tapestry.cli.main import main

HEAVY = ("torch", "grpc", "transformers", "datasets", "numpy", "typer", "pydantic")

OPTIONS = {
    "demo": ["--quick", "--keep", "--data"],
    "node": [
        "join",
        "run",
        "status",
        "audit",
        "finish",
        "exclusions",
        "answer",
        "leave",
        "island",
        "page",
    ],
    "node leave": ["FOLDER", "--export", "--with-keys", "--revoke-only", "--yes", "--json"],
    "node verify-export": ["--json"],
    "node verify-report": ["--json"],
    "node island": ["train", "evaluate", "sample", "list"],
    "node canaries": ["plant", "remove"],
    "node exclusions": ["--json"],
    "node answer": [],
    "node join": ["INVITATION", "--dir", "--language"],
    "node corpus": ["init", "check", "report", "history"],
    "node forget": ["SOURCE", "--dir", "--json"],
    "node approve": ["FOLDER", "--round", "--yes", "--refuse", "--json"],
    "node doctor": ["FOLDER", "--data", "--invitation", "--parameters", "--json"],
    "node follow": ["ADDRESS", "--dir"],
    "node run": ["FOLDER", "--data", "--until-finished", "--json-log", "--verbose"],
    "node trainer": ["FOLDER", "torchrun"],
    "node status": ["FOLDER", "--watch", "--json"],
    "node page": ["FOLDER", "--port", "--json-log"],
    "node audit": ["FOLDER", "--json", "--export", "--leakage", "--seed"],
    "node finish": ["OUT", "--dir", "--data", "--steps"],
    "coordinator": [
        *("init", "serve", "invite", "status", "members", "annotate", "revoke", "pause", "resume"),
        *("rounds", "invitations", "exclusions", "log", "backup", "restore", "policy"),
        *("release", "revert", "archive"),
    ],
    "coordinator init": ["FOLDER", "--name", "--size", "--model", "--pool", "--address"],
    "coordinator serve": ["FOLDER", "--database", "--blobs"],
    "coordinator invite": ["MEMBER", "--dir", "--out", "--role", "--resend", "--as", "--json"],
    "coordinator status": ["--dir", "--as", "--json"],
    "coordinator members": ["--dir", "--as", "--json"],
    "coordinator rounds": ["--last", "--dir", "--as", "--json"],
    "coordinator invitations": ["--last", "--dir", "--as", "--json"],
    "coordinator exclusions": ["MEMBER", "--last", "--dir", "--as", "--json"],
    "coordinator release": ["NUMBER", "--reason", "--dir"],
    "coordinator revert": ["NUMBER", "--reason", "--dir"],
    "coordinator policy": ["show", "check", "history"],
    "coordinator archive": ["list", "export"],
    "coordinator log": ["--last", "--dir", "--as", "--json"],
    "coordinator pause": ["--reason", "--dir", "--as", "--json"],
    "coordinator resume": ["--dir", "--as", "--json"],
    "coordinator backup": ["FILE", "--dir", "--json"],
    "coordinator restore": ["FILE", "FOLDER"],
    "coordinator page": ["FOLDER", "--database", "--json-log"],
    "coordinator page-password": ["--dir", "--remove"],
    "coordinator annotate": ["NUMBER", "--notes", "--image", "--dir"],
    "coordinator revoke": ["MEMBER", "--dir", "--as", "--json"],
    "checkpoint": ["verify", "show", "list", "pull"],
    "checkpoint verify": ["FOLDER", "--federation", "--level", "--archive", "--sample", "--json"],
    "checkpoint show": ["FOLDER", "--json"],
    "checkpoint list": ["FOLDER", "--json"],
    "checkpoint pull": ["OUT", "--dir", "--round", "--archive"],
    "ledger": ["show", "verify", "compare", "evidence"],
    "ledger show": ["FOLDER", "--last", "--json"],
    "ledger verify": ["FOLDER", "--federation", "--json"],
    "ledger compare": ["ONE", "OTHER", "--out", "--json"],
    "ledger evidence": ["--genesis", "--federation", "--json"],
    "finetune": [
        *(
            "doctor",
            "charter",
            "demo",
            "init",
            "plan",
            "run",
            "verify",
            "eval",
            "rebase",
            "language",
        ),
        "sample",
    ],
    "finetune doctor": [
        *("DATA", "--base", "--evaluation", "--declared-language", "--shape", "--role"),
        *("--column", "--skip-bad", "--unverified", "--json"),
    ],
    "finetune charter": ["new", "lint", "render", "score", "collect"],
    "finetune charter new": ["FILE", "--language"],
    "finetune charter lint": ["CHARTER", "--json"],
    "finetune charter render": ["CHARTER"],
    "finetune charter score": [
        *("CHARTER", "BASE", "--bundle", "--with-prompt", "--federation", "--unverified"),
        *("--device", "--seed", "--json"),
    ],
    "finetune charter collect": [
        *("CHARTER", "--out", "--answers", "--prompts", "--base", "--bundle", "--sheet", "--enter"),
        *("--port", "--federation", "--unverified", "--device", "--seed", "--json"),
    ],
    "finetune demo": ["--keep"],
    "finetune init": [
        "DATA",
        "--base",
        "--out",
        "--name",
        "--charter",
        "--all",
        "--unverified",
        "--shape",
        "--role",
        "--column",
        "--skip-bad",
    ],
    "finetune plan": ["RECIPE", "--measure", "--skip-bad", "--unverified", "--json"],
    "finetune run": [
        *("RECIPE", "--out", "--run", "--skip-bad", "--force", "--key", "--unverified"),
    ],
    "finetune verify": ["BUNDLE", "--base", "--key", "--federation", "--json"],
    "finetune rebase": [
        *("BUNDLE", "--onto", "--old", "--recipe", "--steps", "--retrain", "--distil", "--out"),
        *("--watch", "--force", "--key", "--skip-bad", "--unverified", "--json"),
    ],
    "finetune eval": ["BUNDLE", "--base", "--suites", "--out", "--lm-eval", "--json"],
    "finetune language": [
        *("CHECKPOINT", "OUT", "--data", "--steps", "--learning-rate", "--sequences"),
        *("--federation", "--device", "--seed"),
    ],
    "finetune sample": ["MODEL", "--prompt", "--tokens", "--temperature", "--seed"],
    "chat": [
        *("MODEL", "--base", "--charter", "--charter-prompt", "--system", "--tokens"),
        *("--temperature", "--strings", "--ratings", "--federation", "--key", "--unverified"),
    ],
    "serve": [
        *("BUNDLES", "--base", "--host", "--port", "--token-file", "--charter", "--strings"),
        *("--ratings", "--waiting", "--json-log", "--unverified"),
    ],
    "export": ["MODEL", "--format", "--out", "--base", "--type", "--force", "--key", "--json"],
}


def tapestry(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `tapestry` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "tapestry.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120", "TERM": "dumb"},
    )


def test_help_lists_every_command_with_what_it_is_for() -> None:
    done = tapestry("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for line in (
        "usage: tapestry COMMAND ...",
        "  demo         a whole federation on this machine",
        "  node         join a federation",
        "  coordinator  make a federation",
        "  checkpoint   verify, show, list and fetch",
        "  ledger       show and verify",
        "  finetune     turn a consensus checkpoint",
    ):
        assert line in done.stdout
    assert tapestry().stdout == done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tapestry.cli.main import main; code = main(['--help']);"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded [] 0"


EXPLAIN = """
import contextlib, io, json, sys
from tapestry.cli.main import main
answers = {}
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*command.split(), "--help"])
    heavy = [n for n in ("torch", "grpc", "transformers", "datasets") if n in sys.modules]
    answers[command] = [code, out.getvalue(), err.getvalue(), heavy]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def explained() -> dict[str, tuple[int, str, str, list[str]]]:
    """Ask every command for help, in one fresh process: code, output, errors, heavy modules."""
    done = subprocess.run(
        [sys.executable, "-c", EXPLAIN, json.dumps(list(OPTIONS))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "dumb"},
    )
    answers: dict[str, tuple[int, str, str, list[str]]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_explains_itself_and_imports_neither_torch_nor_grpc_for_that(
    explained: dict[str, tuple[int, str, str, list[str]]], command: str
) -> None:
    code, said, errors, heavy = explained[command]
    assert (code, errors, heavy) == (0, "", [])
    assert f"Usage: tapestry {command} " in said
    for named in OPTIONS[command]:
        assert named.lower() in said.lower()  # how arguments are shown is typer's choice


def test_every_command_there_is_stands_in_the_list_above() -> None:
    names = set()
    for point in entry_points(group="tapestry.commands"):
        command = typer.main.get_command(point.load())
        names |= {point.name, *(f"{point.name} {n}" for n in getattr(command, "commands", {}))}
    assert names == {name for name in OPTIONS if name.count(" ") < 2}


def every_command(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command and all below it."""
    yield name, command
    for below, one in getattr(command, "commands", {}).items():
        yield from every_command(f"{name} {below}", one)


def bare(text: str) -> str:
    """Return a text without what a terminal puts around it."""
    return "".join(character for character in text if character not in " \n`│╭╮╰╯─")


@pytest.mark.parametrize(
    "part", sorted(point.name for point in entry_points(group="tapestry.commands"))
)
def test_no_word_of_a_help_text_is_taken_for_markup(
    part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "dumb")
    (point,) = entry_points(group="tapestry.commands", name=part)
    for name, command in every_command(part, typer.main.get_command(point.load())):
        assert main([*name.split(), "--help"]) == 0
        said = bare(capsys.readouterr().out)
        options = [one for one in command.params if not getattr(one, "hidden", False)]
        for text in (command.help, *(getattr(one, "help", None) for one in options)):
            for paragraph in cleandoc(text or "").split("\n\n"):
                assert bare(paragraph) in said, (name, paragraph)


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tapestry {version('tapestry-fl')}\n"


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weave"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "tapestry: no command 'weave'; see `tapestry --help`\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["checkpoint"],
        ["checkpoint", "weave"],
        ["checkpoint", "verify"],
        ["checkpoint", "verify", "--colour", "red"],
        ["checkpoint", "pull", "out", "--round", "newest"],
        ["finetune", "language", "in", "out", "--steps", "0"],
        ["node", "join"],
    ],
)
def test_wrong_usage_has_exit_code_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "Usage: " in said.err + said.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["checkpoint", "show", "."], "manifest"),
        (["checkpoint", "list", "."], "no checkpoints here"),
        (["checkpoint", "pull", "."], "exists already; name a new folder"),
        (["checkpoint", "pull", "new", "--dir", "nowhere"], "no node here; join a federation"),
        (["coordinator", "status", "--dir", "nowhere"], "nowhere"),
        (["coordinator", "invite", "fr-bnf", "--dir", "nowhere"], "nowhere"),
        (["node", "join", "nothing"], "neither an invitation (tapestry-invite-...) nor a file"),
        (["node", "join", "tapestry-invite-1.abc"], "truncated or altered"),
        (["node", "run", "nowhere"], "no node here; join a federation first"),
        (["finetune", "language", "in", "out"], "no text given: add --data PATH"),
        (["finetune", "sample", "nowhere"], "no such folder"),
        (["finetune", "language", ".", "out", "--data", "."], "manifest"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_one(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("tapestry: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_as_a_process_help_and_refusals_are_the_same() -> None:
    done = tapestry("checkpoint", "pull", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: tapestry checkpoint pull " in done.stdout

    done = tapestry("checkpoint", "verify", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tapestry: nowhere: no such folder\n"


# A folder without a node


@pytest.mark.parametrize("command", ["status", "audit"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_folder_without_a_node_gets_the_advice_to_join(
    command: str, as_json: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", command, str(tmp_path), *as_json]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"tapestry: {tmp_path}: no node here; join a federation first: "
        f"`tapestry node join INVITATION --dir {tmp_path}`\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_below_the_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["node", "status"]) == 1
    assert f"{tmp_path / 'tapestry' / 'node'}: no node here" in capsys.readouterr().err
