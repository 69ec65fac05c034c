"""`tapestry coordinator policy ...` and `exclusions` on a coordinator's folder."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tapestry.checkpoints.policy import save_policy
from tapestry.cli.main import main
from tapestry_coordinator.database import database_url
from tapestry_coordinator.registry import Registry
from tests.coordinator.small import FOUNDED_AT, Small, changed_policy, found_small

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return found_small(tmp_path / "fed")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], small: Small) -> Run:
    """Run `tapestry coordinator ... --dir fed`; return exit code, output, and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["coordinator", *map(str, arguments), "--dir", str(small.home.folder)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def edited(small: Small, old: str, new: str) -> None:
    text = small.home.policy.read_text(encoding="utf-8")
    assert old in text
    small.home.policy.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_is_shown_hashes_to_the_digest_in_the_plans(run: Run, small: Small) -> None:
    code, out, _err = run("policy", "show", "--json")
    assert code == 0
    assert hashlib.sha256(out.encode()).hexdigest() == small.policy.digest
    assert json.loads(out)["aggregation"]["codec"] == "float32"
    _code, out, _err = run("policy", "show")
    assert small.policy.digest in out
    assert 'codec = "float32"' in out


def test_an_edited_policy_is_checked_and_then_applied(run: Run, small: Small) -> None:
    edited(small, "clip = 1.5", "clip = 2.0")
    edited(small, 'action = "publish"', 'action = "hold"')
    lines = ["aggregation.clip: 1.5 -> 2.0", 'no_harm.action: "publish" -> "hold"']
    code, out, _err = run("policy", "check")
    assert (code, [line.strip() for line in out.splitlines()][1:]) == (0, lines)
    _code, out, _err = run("policy", "history", "--json")
    assert [row["version"] for row in json.loads(out)["policies"]] == [1]
    code, out, _err = run("policy", "apply")
    assert code == 0
    assert out.startswith("version 2 is recorded, in force when the next round opens")
    code, out, _err = run("policy", "apply")
    assert out.startswith("version 2 is this policy already")
    _code, out, _err = run("policy", "history", "--json")
    newest, oldest = json.loads(out)["policies"]
    assert (newest["version"], newest["changed"], oldest["changed"]) == (2, lines, [])
    _code, out, _err = run("policy", "show", 1, "--json")
    assert json.loads(out)["aggregation"]["clip"] == 1.5


def test_a_proposal_from_elsewhere_becomes_the_file(run: Run, small: Small, tmp_path: Path) -> None:
    proposal = changed_policy(small.policy, influence={"newcomer_rounds": 3})
    save_policy(tmp_path / "proposed.toml", proposal)
    code, _out, _err = run("policy", "apply", tmp_path / "proposed.toml")
    assert code == 0
    assert small.home.load_policy() == proposal


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("influence_cap = 0.0", "influence_cap = 0.3", "raise rounds.quorum to 4"),
        ("min_quorum = 1", "min_quorum = 9", "privacy.min_quorum = 9, but rounds.quorum = 2"),
        ("newcomer_rounds = 0", "newcomer_round = 0", "did you mean newcomer_rounds?"),
    ],
)
def test_what_cannot_hold_is_refused_and_not_recorded(
    run: Run, small: Small, old: str, new: str, cause: str
) -> None:
    edited(small, old, new)
    for command in ("check", "apply"):
        code, _out, err = run("policy", command)
        assert code == 1
        assert cause in err
        assert len(err.strip().splitlines()) == 1
    _code, out, _err = run("policy", "history", "--json")
    assert len(json.loads(out)["policies"]) == 1


def test_a_version_that_never_was_is_an_error(run: Run) -> None:
    code, _out, err = run("policy", "show", 7)
    assert (code, "the newest is 1" in err) == (1, True)


def test_exclusions_are_listed_with_their_answers(run: Run, small: Small) -> None:
    assert run("exclusions")[1] == "nothing was left out\n"
    with closing(Registry(database_url(small.home.folder))) as registry:
        for member in ("a", "b"):
            registry.exclude(3, member, kind="refused", reason="too short", now=FOUNDED_AT)
        registry.answer(1, "a", "by law", now=FOUNDED_AT)
    _code, out, _err = run("exclusions")
    assert out.count("too short") == 2
    assert "a answers: by law" in out
    _code, out, _err = run("exclusions", "b", "--json")
    (row,) = json.loads(out)["exclusions"]
    assert (row["member_id"], row["round"], row["answer"]) == ("b", 3, "")
