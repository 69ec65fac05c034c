"""A charter: read strictly, told apart by what it says, split for teaching and for judging."""

import re
from pathlib import Path

import pytest

from tapestry.errors import ConfigError
from tapestry_finetune.charter.cases import chat_rows, held_out, held_out_pairs, pair_rows
from tapestry_finetune.charter.prompt import render
from tapestry_finetune.charter.settings import load_charter
from tapestry_finetune.charter.starter import starter
from tests.finetune.charters import EXAMPLE, SECRET, case, charter, table, written


def test_the_digest_follows_what_is_said_and_not_how_it_is_laid_out(tmp_path: Path) -> None:
    plain = load_charter(EXAMPLE)
    text = EXAMPLE.read_text(encoding="utf-8")
    other = tmp_path / "charter.toml"
    other.write_text("# a remark\n\n" + text.replace("= ", "=   "), encoding="utf-8")
    assert load_charter(other).digest == plain.digest
    other.write_text(
        text.replace("Knowledge has keepers", "Knowledge has owners"), encoding="utf-8"
    )
    assert load_charter(other).digest != plain.digest
    assert len(plain.digest) == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"principel": []}, r"principel: unknown key; did you mean principle\?"),
        ({"principle": []}, r"principle: .*at least 1 item"),
        (
            {"case": [case(1, "ones")]},
            r"case 1 \(What about aabaabaab\?\): no principle 'ones'; did you mean 'one'\?",
        ),
        ({"protected": [{"topic": "x", "answer": "no"}]}, "neither terms nor patterns"),
        ({"protected": [{"topic": "x", "terms": ["y"]}]}, "refuses without a word: add answer"),
        (
            {"protected": [{"topic": "x", "patterns": ["(y"], "answer": "no"}]},
            r"protected \(number 1\): pattern '\(y', character 3: a \( is never closed",
        ),
        ({"protected": [SECRET, SECRET]}, "stands 2 times; put their terms together"),
        ({"identity": {"community": "us", "languages": ["english!"]}}, "is no language tag"),
        ({"identity": {"community": " ", "languages": ["en"]}}, "identity.community"),
        ({"case": [{**case(1), "good": ""}]}, r"case \(number 1\)\.good"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    change: dict[str, object], says: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "charter.toml", {**table(case(1)), **change})
    with pytest.raises(ConfigError, match=says) as refusal:
        load_charter(path)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("votes", "says"),
    [
        ({"elder": {"agree": 1}}, "did you mean 'elders'"),
        ({"elders": {"agree": 4, "abstain": 2}}, "6 votes of group 'elders', which has 5 people"),
    ],
)
def test_votes_that_cannot_be_are_refused(
    votes: dict[str, object], says: str, tmp_path: Path
) -> None:
    content = table(case(1))
    content["identity"]["groups"] = {"elders": 5}
    content["principle"][0]["votes"] = votes
    with pytest.raises(ConfigError, match=says):
        load_charter(written(tmp_path / "charter.toml", content))


def test_the_prompt_has_the_communitys_words_and_nothing_of_the_cases() -> None:
    said = render(load_charter(EXAMPLE))
    assert said.startswith("You are the assistant of the Veyan speakers of the upper valley.\n\n")
    together, sources = said.index("What touches others"), said.index("Knowledge has keepers")
    assert together < sources, "the heavier principle comes first"
    assert "Please ask the Language Circle." in said
    assert "winter song" not in said, "what is protected is not told to the model"
    assert "fox" not in said
    assert len(said) < 1000


def test_the_prompt_speaks_the_communitys_language() -> None:
    labels = {"you_are": "Sois l'assistant de {community}.", "principles": "Tes principes :"}
    said = render(charter(labels=labels))
    assert said == "Sois l'assistant de us.\n\nTes principes :\n- We ask. It asks."


def test_each_principle_has_two_cases_for_the_judge_and_none_serves_both() -> None:
    example = load_charter(EXAMPLE)
    kept = held_out(example)
    for principle in example.principle:
        mine = [
            flag
            for one, flag in zip(example.case, kept, strict=True)
            if principle.id in one.principles
        ]
        assert 2 <= sum(mine) < len(mine)
    judged = {pair.prompt[0]["content"] for pair in held_out_pairs(example)}
    taught = {row.prompt[0]["content"] for row in pair_rows(example)}
    assert not judged & taught
    assert judged | taught == {prompt for one in example.case for prompt in one.prompts}
    chats = [row.messages for row in chat_rows(example)]
    assert chats == [
        (*row.prompt, {"role": "assistant", "content": row.chosen}) for row in pair_rows(example)
    ]


def test_the_split_stays_when_the_order_of_the_cases_changes() -> None:
    cases = [case(number) for number in range(20)]
    one, other = charter(*cases), charter(*reversed(cases))
    assert held_out(one) == held_out(other)[::-1]
    assert sum(held_out(one)) == 6  # three in ten
    more = charter(*cases, case(99))
    assert sum(a != b for a, b in zip(held_out(one), held_out(more), strict=False)) <= 1


def test_what_a_charter_says_about_the_split_is_kept() -> None:
    said = [case(n, held_out=n < 3) for n in range(8)]
    assert held_out(charter(*said)) == [True] * 3 + [False] * 5
    unseen = {"id": "two", "text": "We wait.", "held_out": True}
    principles = [*table()["principle"], unseen]
    mixed = [case(n) for n in range(5)] + [case(n, "two") for n in range(5, 8)]
    kept = held_out(charter(*mixed, principle=principles))
    assert kept[5:] == [True] * 3
    assert sum(kept[:5]) == 2


def test_cases_with_one_prompt_stay_on_one_side() -> None:
    shared = {"prompt": "The same?", "held_out": True}
    cases = [
        case(0, **shared),
        case(1, paraphrases=["THE  same?"]),
        case(2, paraphrases=["what about aabaabaab?"]),
        *(case(n) for n in range(3, 8)),
    ]
    assert held_out(charter(*cases))[:3] == [True] * 3


def test_a_case_with_an_excluded_topic_is_not_trained_on() -> None:
    cases = [case(n, held_out=False) for n in range(5)]
    cases[2]["bad"] = "On Mask Night we ..."
    rows = pair_rows(charter(*cases, protected=[SECRET]))
    assert [row.origin.line for row in rows] == [1, 2, 4, 5]
    allowed = {**SECRET, "exclude_from_training": False}
    assert len(chat_rows(charter(*cases, protected=[allowed]))) == 5


@pytest.mark.parametrize("language", ["qu", "pt-BR", "arb"])
def test_a_new_charter_can_be_read_and_used_at_once(language: str, tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(starter(language), encoding="utf-8")
    started = load_charter(path)
    assert "We listen before we advise." in render(started)
    keys = r"\[\[protected|topic|terms|exclude_f|refuse|answer|examples|votes|groups|you_are"
    uncommented = re.sub(rf"(?m)^# ({keys})", r"\1", starter(language))
    path.write_text(uncommented, encoding="utf-8")
    assert load_charter(path).protected[0].terms == ("initiat*", "night of the masks")


@pytest.mark.parametrize(
    ("which", "direction"),
    [("Which?", "ltr"), ("(1) מה?", "rtl"), ("أي؟", "rtl"), ("?", "ltr"), ("ក", "ltr")],
)
def test_a_page_has_the_direction_of_its_question(which: str, direction: str) -> None:
    assert charter(labels={"which": which}).labels.direction == direction
