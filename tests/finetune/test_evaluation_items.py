"""Suites out of folders and files: what is found, and what is refused with line and remedy."""

import json
from pathlib import Path

import pytest

from tapestry.errors import ConfigError
from tapestry_finetune.evaluation.items import (
    ChoiceItem,
    ExactItem,
    Prompt,
    TextItem,
    read_prompts,
    read_suite,
)
from tapestry_finetune.evaluation.measuring import read_material
from tapestry_finetune.evaluation.suites import load_suites


def written(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_three_kinds_of_a_suite(tmp_path: Path) -> None:
    path = written(
        tmp_path / "quiz.jsonl",
        '{"prompt": "2 + 2?", "choices": ["3", "4"], "answer": 1, "language": "en"}',
        '{"prompt": "2 + 2?", "choices": ["3", "4"], "answer": "4", "plain": true}',
        "",
        '{"prompt": "Hoofdstad?", "accept": ["Parijs"], "domain": "places", "id": "capital"}',
        '{"text": "Er was eens."}',
    )
    suite = read_suite(path)
    assert suite.name == "quiz"
    assert suite.items == (
        ChoiceItem("2 + 2?", ("3", "4"), 1),
        ChoiceItem("2 + 2?", ("3", "4"), 1, plain=True),
        ExactItem("Hoofdstad?", ("Parijs",)),
        TextItem("Er was eens."),
    )
    assert suite.ids == ("1", "2", "capital", "5")
    assert suite.tags == ({"language": "eng"}, {}, {"domain": "places"}, {})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "list where an object is expected"),
        ('{"prompt": "a"}', "neither a question nor a text (it has: prompt)"),
        ('{"promt": "a", "accept": ["b"]}', "unknown field 'promt'"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', '"choices" must be 2 different'),
        ('{"prompt": "a", "choices": ["b", "b"], "answer": 0}', '"choices" must be 2 different'),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "with 2 choices it is 0 to 1"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "d"}', "is none of the choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "one of the choices, or its"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "one of the choices, or its number"),
        ('{"prompt": " ", "accept": ["b"]}', '"prompt" must be a text that is not empty'),
        ('{"prompt": "a", "accept": "b"}', '"accept" must be a list of texts'),
        ('{"text": "a", "language": "x_y"}', "\"language\": 'x_y' is no language tag"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path / "quiz.jsonl", '{"text": "fine"}', line)
    with pytest.raises(ConfigError) as caught:
        read_suite(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_all_faults_are_named_at_once_up_to_twenty(tmp_path: Path) -> None:
    path = written(tmp_path / "quiz.jsonl", *["{}"] * 30)
    with pytest.raises(ConfigError) as caught:
        read_suite(path)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == [str(n) for n in range(1, 21)]
    assert lines[-1] == "and 10 more"


def test_prompts_are_lines_or_json_lines(tmp_path: Path) -> None:
    plain = written(tmp_path / "prompts.txt", "Wie ben je?", "", "  Who are you?  ")
    assert read_prompts(plain) == [Prompt("Wie ben je?"), Prompt("Who are you?")]
    rows = written(tmp_path / "prompts.jsonl", json.dumps({"prompt": "Wie?", "language": "nl"}))
    assert read_prompts(rows) == [Prompt("Wie?", "nld")]
    with pytest.raises(ConfigError, match="no prompt; write one a line"):
        read_prompts(written(tmp_path / "none.txt", ""))


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 13"):
        read_suite(path)


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    nld = written(tmp_path / "text" / "nl.txt", "tekst")
    eng = written(tmp_path / "text" / "eng" / "a.txt", "text")
    quiz = written(tmp_path / "suites" / "quiz.jsonl", '{"text": "a"}')
    loose = written(tmp_path / "loose.jsonl", '{"text": "a"}')
    prompts = written(tmp_path / "prompts.jsonl", '{"prompt": "a"}')
    refuse = written(tmp_path / "must_refuse.txt", "a")
    secret = written(tmp_path / "protected" / "song.txt", "a")
    suites, floor = load_suites(tmp_path)
    assert suites.text == {"eng": (eng.parent,), "nld": (nld,)}
    assert suites.suites == (loose, quiz)
    assert (suites.prompts, suites.must_refuse) == (prompts, refuse)
    assert suites.protected == (secret.parent,)
    assert floor.accuracy_points == 2.0


def test_a_recipe_has_both_tables_and_paths_seen_from_it(tmp_path: Path) -> None:
    path = written(
        tmp_path / "recipe.toml",
        "[training]",
        "steps = 3",
        "[evaluation]",
        'text = { nl = ["held/nl.txt"] }',
        'prompts = "prompts.txt"',
        "survey = true",
        "[floor]",
        "accuracy_points = 1.0",
    )
    suites, floor = load_suites(path)
    assert suites.text == {"nl": (tmp_path / "held" / "nl.txt",)}
    assert suites.prompts == tmp_path / "prompts.txt"
    assert suites.survey is True
    assert floor.accuracy_points == 1.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[floor]", r"no table \[evaluation\]"),
        ("[evaluation]\nsuits = []", "did you mean suites"),
        ("[evaluation]\ntext = { klingon_ = [] }", "is no language tag"),
        ("[evaluation]\nwindow_tokens = 64", "leaves no room in window_tokens = 64"),
        ("[evaluation", "not valid TOML"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = written(tmp_path / "suites.toml", content)
    with pytest.raises(ConfigError, match=said):
        load_suites(path)


def test_what_is_not_there_is_said_with_what_could_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing; a folder holds text/LANGUAGE"):
        load_suites(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nothing here to measure; a folder holds"):
        load_suites(tmp_path)
    written(tmp_path / "text" / "my_notes.txt", "a")
    with pytest.raises(ConfigError, match="must be named after a language"):
        load_suites(tmp_path)


def test_two_suites_of_one_name_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "quiz.jsonl", '{"text": "a"}')
    written(tmp_path / "suites" / "quiz.jsonl", '{"text": "a"}')
    suites, _floor = load_suites(tmp_path)
    with pytest.raises(ConfigError, match="two things to measure are called 'quiz'"):
        read_material(suites)
