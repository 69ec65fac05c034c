"""`tapestry checkpoint verify`, `show` and `list` on published folders, for people and programs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.main import main
from tests.conftest import TOKENS, Federation

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tapestry checkpoint ...`; return exit code, output, and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["checkpoint", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def tampered(federation: Federation, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint with one bit of one weight changed."""
    copy = tmp_path / "published" / "round-000001"
    shutil.copytree(federation.newest, copy)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return copy


def loaded(text: str) -> Any:
    return json.loads(text)


# verify


def test_a_published_checkpoint_verifies(run: Run, federation: Federation) -> None:
    verified = verify_checkpoint(federation.newest)
    code, said, errors = run("verify", federation.newest)
    assert (code, errors) == (0, "")
    assert said.startswith("verified: checkpoint 1 of loom\n")
    assert "2 manifests from genesis on" in said
    assert f"root {verified.manifest.vector_root[:16]} as signed" in said
    assert verified.genesis_digest in said
    assert f"add --federation {verified.genesis_digest[:16]}" in said


def test_who_names_the_federation_needs_no_advice(run: Run, federation: Federation) -> None:
    identity = verify_checkpoint(federation.newest).genesis_digest
    for digits in (identity, identity[:16], identity[:20].upper()):
        code, said, _errors = run("verify", federation.newest, "--federation", digits)
        assert code == 0
        assert "add --federation" not in said


def test_verifying_for_a_program(run: Run, federation: Federation) -> None:
    verified = verify_checkpoint(federation.newest)
    code, said, errors = run("verify", federation.newest, "--json")
    assert (code, errors) == (0, "")
    table = loaded(said)
    levels = table.pop("levels")
    assert [(one["level"], one["verdict"]) for one in levels] == [
        ("files", "passed"),
        ("record", "passed"),
        ("ledger", "passed"),
    ]
    assert table == {
        "verified": True,
        "level": "ledger",
        "federation": verified.genesis_digest,
        "round": 1,
        "manifest": verified.manifest_digest,
        "files": len(verified.manifest.files) + len(verified.card.files),
        "pinned": False,
    }
    identity = verified.genesis_digest
    _code, said, _errors = run("verify", federation.newest, "--json", "--federation", identity)
    assert loaded(said)["pinned"] is True


def test_a_changed_bit_is_found_and_named(run: Run, tampered: Path) -> None:
    code, said, errors = run("verify", tampered)
    assert (code, said) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"tapestry: {tampered / 'model.safetensors'}: changed: SHA-256 ")


def test_a_changed_bit_for_a_program(run: Run, tampered: Path) -> None:
    code, said, errors = run("verify", tampered, "--json")
    assert code == 1
    table = loaded(said)
    assert table["verified"] is False
    assert "model.safetensors: changed" in table["cause"]
    assert errors == f"tapestry: {table['cause']}\n"


def test_another_federation_is_refused(run: Run, federation: Federation) -> None:
    code, said, errors = run("verify", federation.newest, "--federation", "0" * 16)
    assert (code, said) == (1, "")
    assert "checkpoint of another federation" in errors


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_short_identity_proves_nothing_and_is_refused(
    run: Run, federation: Federation, as_json: list[str]
) -> None:
    identity = verify_checkpoint(federation.newest).genesis_digest
    code, said, errors = run("verify", federation.newest, "--federation", identity[:15], *as_json)
    assert (code, said) == (2, "")
    assert "give at least 16 digits of the identity" in errors


def test_a_folder_that_is_no_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    code, said, errors = run("verify", tmp_path, "--json")
    assert code == 1
    assert loaded(said)["verified"] is False
    assert len(errors.splitlines()) == 1


def test_a_replay_from_the_coordinators_own_folder(run: Run, federation: Federation) -> None:
    archive = federation.home.folder
    code, said, errors = run("verify", federation.newest, "--archive", archive)
    assert (code, errors) == (0, "")
    assert "replay  ok" in said
    assert "made once more of 2 contributions, the same to the bit" in said
    head = "ab" * 32
    code, said, _errors = run(
        "verify", federation.newest, "--archive", archive, "--sample", 1, "--head", head
    )
    assert code == 0
    assert "1 of " in said


def test_a_replay_without_an_archive_is_not_decided(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    code, said, errors = run("verify", federation.newest, "--level", "replay", "--json")
    assert code == 3
    assert loaded(said)["verified"] is False
    assert loaded(said)["levels"][3]["verdict"] == "undecided"
    assert "add --archive" in errors
    code, said, _errors = run("verify", federation.newest, "--archive", tmp_path)
    assert code == 3
    assert said.startswith("not decided: checkpoint 1 of loom\n")


def test_a_checkpoint_that_no_ledger_has_is_not_decided(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    shutil.copytree(federation.newest, tmp_path / "copy")
    (tmp_path / "copy" / "tapestry" / "ledger.json").unlink()
    code, said, errors = run("verify", tmp_path / "copy", "--archive", federation.home.folder)
    assert code == 3
    assert "replay  ok" in said
    assert "nothing shows that this checkpoint is in the federation's ledger" in errors
    code, _said, _errors = run("verify", tmp_path / "copy", "--level", "record")
    assert code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "deep"], "there are files, record, ledger, replay"),
        (["--level", "replay", "--sample", 2], "--sample without --head"),
        (["--sample", 2, "--head", "xyz"], "not a root hash"),
        (["--archive", "/nowhere"], "no such folder"),
    ],
)
def test_wrong_usage_says_nothing_about_the_checkpoint(
    run: Run, federation: Federation, options: list[object], words: str
) -> None:
    code, said, errors = run("verify", federation.newest, *options)
    assert (code, said) == (2, "")
    assert words in errors


def test_an_old_checkpoint_served_as_a_new_one_is_refused(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    code, _said, errors = run("verify", federation.newest, "--at-least", 2)
    assert code == 1
    assert "checkpoint 1 is older than 2" in errors
    assert run("verify", federation.newest, "--at-least", 1)[0] == 0
    renamed = tmp_path / "round-000002"
    shutil.copytree(federation.newest, renamed)
    code, _said, errors = run("verify", renamed)
    assert code == 1
    assert "holds checkpoint 1, which is not what its name says" in errors


# show


def test_a_checkpoint_shows_what_it_was_made_from(run: Run, federation: Federation) -> None:
    verified = verify_checkpoint(federation.newest)
    made = verified.manifest.made
    assert made is not None
    code, said, errors = run("show", federation.newest)
    assert (code, errors) == (0, "")
    lines = said.splitlines()
    assert lines[0] == "checkpoint 1 of loom"
    assert f"  digest      {verified.manifest_digest}" in lines
    assert f"  model       {verified.manifest.elements:,} parameters" in lines
    assert "codec int8, 20 inner steps" in said
    # (10000 / 2500) ** 0.5 = 2, and two thirds are capped at an equal share
    assert [part.weight for part in made.participation] == [0.5, 0.5]
    for member_id, tokens in TOKENS.items():
        assert any(
            f"{member_id:<24}" in line and f"{tokens:,} tokens" in line and "weight 0.5000" in line
            for line in lines
        )
    assert any("ar-unc" in line and "absent: this node's policy" in line for line in lines)
    assert any("7.0000 bits per byte on fr" in line for line in lines)


def test_genesis_shows_what_it_was_created_with(run: Run, federation: Federation) -> None:
    code, said, _errors = run("show", federation.genesis)
    assert code == 0
    assert said.startswith("checkpoint 0 of loom\n")
    assert 'genesis: {"size": "tiny", "vocabulary": 260}' in said


def test_showing_for_a_program_prints_the_manifest(run: Run, federation: Federation) -> None:
    code, said, errors = run("show", federation.newest, "--json")
    assert (code, errors) == (0, "")
    table = loaded(said)
    assert table == verify_checkpoint(federation.newest).manifest.model_dump(mode="json")
    assert {part["member_id"] for part in table["made"]["participation"]} == set(TOKENS)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_does_not_verify_is_not_shown(run: Run, tampered: Path, as_json: list[str]) -> None:
    code, said, errors = run("show", tampered, *as_json)
    assert (code, said) == (1, "")
    assert "model.safetensors: changed" in errors


# list


def test_checkpoints_are_listed_with_what_was_measured(run: Run, federation: Federation) -> None:
    code, said, errors = run("list", federation.home.published)
    assert (code, errors) == (0, "")
    first, second = said.splitlines()
    digest = verify_checkpoint(federation.newest).manifest_digest[:16]
    assert second.split() == ["1", digest, "2", "members", "7.0000", "bits", "per", "byte"]
    assert first.split()[0] == "0"
    assert first.split()[2:4] == ["0", "members"]


def test_listing_for_a_program(run: Run, federation: Federation) -> None:
    code, said, errors = run("list", federation.home.published, "--json")
    assert (code, errors) == (0, "")
    genesis, newest = loaded(said)
    assert (genesis["round"], newest["round"]) == (0, 1)
    assert newest["digest"] == verify_checkpoint(federation.newest).manifest_digest
    assert newest["members"] == 2
    assert newest["bits_per_byte"] == {"fr-bnf": 7.0, "is-lbs": 7.0}
    assert newest["folder"] == str(federation.newest)


def test_a_folder_without_checkpoints_says_so(run: Run, tmp_path: Path) -> None:
    code, said, errors = run("list", tmp_path)
    assert (code, said) == (1, "")
    assert "no checkpoints here (folders round-000000, ...)" in errors


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_list_with_a_forged_statement_is_refused(
    run: Run, tampered: Path, as_json: list[str]
) -> None:
    card = tampered / "tapestry" / "card.json"
    table = json.loads(card.read_text())
    table["payload"] = table["payload"][:-8] + "AAAAAAA="
    card.write_text(json.dumps(table))
    code, said, errors = run("list", tampered.parent, *as_json)
    assert (code, said) == (1, "")
    assert len(errors.splitlines()) == 1
