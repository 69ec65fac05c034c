"""`charter lint`: each slip is found, with its place; the example has none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tapestry.cli.main import main
from tapestry_finetune.charter.labels import Labels
from tapestry_finetune.charter.linting import lint
from tapestry_finetune.charter.settings import Votes, load_charter
from tapestry_finetune.charter.votes import agreement_of, group_aware_consensus
from tests.finetune.charters import EXAMPLE, SECRET, case, charter, table, written

LABELS = Labels().model_dump()
SOUND = [case(number) for number in range(6)]


def found(*cases: dict[str, Any], **more: Any) -> list[str]:
    return [
        f"{one.level}: {one.where}: {one.what}" for one in lint(charter(*(cases or SOUND), **more))
    ]


def principle(**more: Any) -> dict[str, Any]:
    return {"principle": [{**table()["principle"][0], **more}]}


def test_a_sound_charter_and_the_example_have_nothing_to_mend() -> None:
    assert found() == []
    assert lint(load_charter(EXAMPLE)) == []


@pytest.mark.parametrize(
    ("cases", "more", "says"),
    [
        (SOUND[:3], {}, "error: principle one: 3 cases name it, 5 are the fewest"),
        (
            [case(n, held_out=n == 0) for n in range(6)],
            {},
            "error: principle one: 1 of its cases held out, 2 are the fewest",
        ),
        (
            [case(n, held_out=True) for n in range(6)],
            {},
            "error: principle one: all its cases are held out",
        ),
        (
            SOUND,
            principle(text="We never lie."),
            "hint: principle one: says what not to do ('never')",
        ),
        (SOUND, principle(text="a" * 300), "hint: principle one: its text has 300 characters"),
        (SOUND, principle(behaviour=""), "hint: principle one: has no behaviour"),
        (SOUND, principle(counter_example=" "), "hint: principle one: has no counter_example"),
        (
            SOUND,
            {"principle": table()["principle"] * 2},
            "error: principle one: this id is given to 2",
        ),
        ([*SOUND, case(7, "oen")], {}, "error: case 7 (What about aahaahaah?): no principle 'oen'"),
        (
            [*SOUND, case(7, good="Sell it.", bad="SELL  it.")],
            {},
            "error: case 7 (What about aahaahaah?): the good and the bad answer are the same",
        ),
        (
            [case(n, good="Ask them " * 9, bad="Sell it now.") for n in range(6)],
            {},
            "hint: cases: good answers are usually 6.7 times longer",
        ),
        (
            [
                *SOUND,
                case(7, prompt="Shall I sell the house?", good="Ask them.", bad="Sell it."),
                case(8, prompt="Shall I sell the house", good="Sell it!", bad="Ask them first."),
            ],
            {},
            "error: case 7 (Shall I sell the house?): case 8 (Shall I sell the house) asks the",
        ),
        (
            [
                *SOUND,
                case(7, prompt="Shall I sell the house?", held_out=True),
                case(8, prompt="Shall I sell the house", held_out=False),
            ],
            {},
            "hint: case 7 (Shall I sell the house?): case 8 (Shall I sell the house) asks nearly",
        ),
        (
            SOUND,
            {"protected": [{**SECRET, "patterns": [r"\w"]}]},
            "error: protected 'the night of masks': pattern 1 matches too much: a single letter",
        ),
        (
            SOUND,
            {"protected": [{**SECRET, "terms": ["about"]}]},
            "hint: case 1 (What about aaaaaaaaa?): touches the protected topic",
        ),
        (
            [case(n, good="About it.", bad="About us.") for n in range(6)],
            {"protected": [{**SECRET, "terms": ["about"]}]},
            "error: protected 'the night of masks': term 1 matches too much: it is found in 18 of",
        ),
        (
            SOUND,
            {"protected": [{**SECRET, "patterns": [r"a\bb"]}]},
            "error: protected 'the night of masks': pattern 1 matches nothing",
        ),
        (
            SOUND,
            {"protected": [{**SECRET, "examples": ["Mask nights", "On MASK night."]}]},
            "error: protected 'the night of masks': example 1 is not recognized",
        ),
        (
            SOUND,
            {"protected": [{**SECRET, "answer": "The initiation is not mine to tell."}]},
            "error: protected 'the night of masks': its answer says itself what it protects",
        ),
        (
            [*SOUND, case(7, good="Initiation, of course.")],
            {"protected": [SECRET]},
            "error: case 7 (What about aahaahaah?): its good answer has term 2",
        ),
        (
            SOUND,
            {"identity": {"community": "us", "languages": ["qu"]}},
            "hint: labels: are in English, the charter is in que",
        ),
        (
            SOUND,
            {
                "identity": {"community": "us", "languages": ["qu"]},
                "labels": {k: f"{v}." for k, v in LABELS.items() if k not in ("tone", "begin")},
            },
            "hint: labels: still in English, the charter is in que: tone, begin",
        ),
    ],
)
def test_a_slip_is_found(cases: list[dict[str, Any]], more: dict[str, Any], says: str) -> None:
    assert [one for one in found(*cases, **more) if one.startswith(says)], found(*cases, **more)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("es", "Nunca mentimos."),
        ("pt-BR", "N\u00e3o mentimos."),
        ("fr", "Nous ne mentons pas."),
        ("de", "Wir machen keine Versprechen."),
        ("ru", "\u041c\u044b \u043d\u0435 \u043b\u0436\u0451\u043c."),
        ("zh", "\u6211\u4eec\u4e0d\u8bf4\u8c0e\u3002"),
        ("id", "Kami tidak berbohong."),
    ],
)
def test_framing_is_seen_in_languages_we_know(language: str, text: str) -> None:
    identity = {"community": "us", "languages": [language]}
    hints = found(**principle(text=text), identity=identity)
    assert any("says what not to do" in one for one in hints)
    assert not any(
        "says what not" in one for one in found(**principle(text=text[-2:]), identity=identity)
    )


def test_a_group_that_is_against_is_named_however_small_it_is() -> None:
    votes = {"many": Votes(agree=97, disagree=3), "few": Votes(agree=2, disagree=6, abstain=2)}
    assert agreement_of(votes["few"]) == 3 / 12
    assert group_aware_consensus(votes) == pytest.approx(98 / 102 * 3 / 12)
    assert group_aware_consensus({}) == 1.0
    groups = {"many": 120, "few": 12, "silent": 5}
    said = {name: one.model_dump() for name, one in votes.items()}
    hints = found(
        **principle(votes=said),
        identity={"community": "us", "languages": ["en"], "groups": groups},
    )
    against, silent = hints
    assert against.startswith("hint: principle one: group 'few' is not behind it (2 of 10 agree); ")
    assert "group-aware consensus 0.24" in against
    assert silent == "hint: principle one: no votes of silent: their consent is not known"


def test_the_command_ends_with_one_where_there_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "charter", "lint", str(EXAMPLE)]) == 0
    said = capsys.readouterr().out
    assert "sources: 6 cases, 2 held out, group-aware consensus 0.67" in said
    consensus = math.prod(((23 + 1) / 26, (26 + 1) / 33, (15 + 1) / 18))
    assert f"{consensus:.2f}" == "0.67"
    few = written(tmp_path / "few.toml", table(case(1)))
    assert main(["finetune", "charter", "lint", str(few), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == 1
    assert told["principles"] == {"one": {"cases": 1, "held_out": 0, "consensus": None}}
    assert told["findings"][0]["where"] == "principle one"
    assert main(["finetune", "charter", "lint", str(tmp_path / "none.toml")]) == 1
    assert "none.toml: cannot be read" in capsys.readouterr().err


def test_new_writes_a_charter_and_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "charter.toml"
    assert main(["finetune", "charter", "new", str(path), "--language", "qu"]) == 0
    assert load_charter(path).identity.languages == ("que",)
    assert main(["finetune", "charter", "new", str(path), "--language", "qu"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["finetune", "charter", "render", str(path)]) == 0
    assert "We listen before we advise." in capsys.readouterr().out
    assert main(["finetune", "charter", "new", str(tmp_path / "b"), "--language", "x y"]) == 1
