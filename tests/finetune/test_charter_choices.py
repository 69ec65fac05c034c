"""Choosing: nothing is lost, the order is hidden, and agreement is Krippendorff's."""

import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from tapestry.cli.main import main
from tapestry.errors import ConfigError
from tapestry_finetune.charter.agreement import krippendorff_alpha
from tapestry_finetune.charter.choices import Choices, log_of, open_choices
from tapestry_finetune.charter.questions import Question, read_prompts, read_questions
from tapestry_finetune.rows.reading import read_rows
from tests.finetune.charters import EXAMPLE

QUESTIONS = [Question(f"What about {n}?", (f"First {n}.", f"Second {n}.")) for n in range(40)]


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choose_first(choices: Choices, number: int, who: str, *, principle: str = "") -> None:
    question = choices.questions[number]
    said = "right" if choices.is_swapped(question, who) else "left"
    choices.choose(question, who, said, now=float(number), principle=principle)


def test_what_was_chosen_is_read_as_preferences(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with open_choices(out, QUESTIONS) as choices:
        choose_first(choices, 0, "Ana", principle="sources")
        choices.choose(QUESTIONS[1], "Ana", "neither", now=1.0)
        choices.choose(QUESTIONS[2], "Ana", "both_bad", now=2.0)
        read = read_rows([out])
    (row,) = read.rows
    assert read.kind == "pairs"
    assert [dict(message) for message in row.prompt] == [
        {"role": "user", "content": "What about 0?"}
    ]
    assert (row.chosen, row.rejected) == ("First 0.", "Second 0.")
    assert rows_of(out)[0]["principles"] == ["sources"]


def test_the_majority_decides_and_a_tie_teaches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with open_choices(out, QUESTIONS) as choices:
        for who in ("Ana", "Bo"):
            choose_first(choices, 0, who)
        for number in (0, 1):
            question = QUESTIONS[number]
            side = "left" if choices.is_swapped(question, "Cy") else "right"
            choices.choose(question, "Cy", side, now=3.0)
        choose_first(choices, 1, "Ana")
    (row,) = rows_of(out)
    assert (row["chosen"], row["people"], row["agreeing"]) == ("First 0.", 3, 2)


def test_a_change_of_mind_counts_and_the_log_keeps_both(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with open_choices(out, QUESTIONS) as choices:
        choose_first(choices, 0, "Ana")
        choices.choose(QUESTIONS[0], "Ana", "both_bad", now=9.0)
        assert choices.done_by("Ana") == 1
    assert rows_of(out) == []
    assert [row["chosen"] for row in rows_of(log_of(out))] == ["first", "both_bad"]


def test_each_person_goes_on_where_they_stood(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with open_choices(out, QUESTIONS) as choices:
        choose_first(choices, 0, "Ana")
        choose_first(choices, 1, "Ana")
        choose_first(choices, 0, "Bo")
    before = out.read_text()
    out.unlink()  # the log has it all
    with open_choices(out, QUESTIONS) as choices:
        assert choices.next_for("Ana") == QUESTIONS[2]
        assert choices.next_for("Bo") == QUESTIONS[1]
        assert choices.next_for("Cy") == QUESTIONS[0]
    assert out.read_text() == before


def test_half_a_line_at_the_end_is_dropped_and_a_whole_one_kept(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with open_choices(out, QUESTIONS) as choices:
        choose_first(choices, 0, "Ana")
        choose_first(choices, 1, "Ana")
    log = log_of(out)
    log.write_bytes(log.read_bytes()[:-5])
    with open_choices(out, QUESTIONS) as choices:
        assert choices.done_by("Ana") == 1
        choose_first(choices, 1, "Ana")
    assert len(rows_of(log)) == 2
    log.write_bytes(b'{"question": 1}\n')
    with pytest.raises(ConfigError, match=r"choices.log.jsonl:1: no choice"), open_choices(out, []):
        pass


def test_a_choice_is_on_the_disk_when_it_is_made(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    program = f"""
import os
from pathlib import Path
from tapestry_finetune.charter.choices import open_choices
from tapestry_finetune.charter.questions import Question
question = Question("What about 0?", ("First 0.", "Second 0."))
with open_choices(Path({str(out)!r}), [question]) as choices:
    choices.choose(question, "Ana", "left", now=1.0)
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    with open_choices(out, QUESTIONS) as choices:
        assert choices.done_by("Ana") == 1


def test_two_processes_do_not_write_one_log(tmp_path: Path) -> None:
    out = tmp_path / "choices.jsonl"
    with (
        open_choices(out, QUESTIONS),
        pytest.raises(ConfigError, match="another `charter collect`"),
        open_choices(out, QUESTIONS),
    ):
        pass


def test_the_order_is_hidden_differs_between_people_and_stays(tmp_path: Path) -> None:
    with open_choices(tmp_path / "a.jsonl", QUESTIONS, seed=1) as choices:
        mine = [choices.is_swapped(question, "Ana") for question in QUESTIONS]
        theirs = [choices.is_swapped(question, "Bo") for question in QUESTIONS]
        assert 8 < sum(mine) < 32
        assert mine != theirs
        swapped = QUESTIONS[mine.index(True)]
        assert choices.shown(swapped, "Ana") == swapped.answers[::-1]
        assert choices.choose(swapped, "Ana", "left", now=0.0).chosen == "second"
    with open_choices(tmp_path / "a.jsonl", QUESTIONS, seed=1) as choices:
        assert [choices.is_swapped(question, "Ana") for question in QUESTIONS] == mine


# Agreement


@pytest.mark.parametrize("seed", range(20))
def test_alpha_is_that_of_an_independent_implementation(seed: int) -> None:
    luck = random.Random(seed)  # noqa: S311
    people, things, values = luck.randint(2, 5), luck.randint(3, 30), luck.randint(2, 4)
    table = np.full((people, things), np.nan)
    choices = []
    truth = [luck.randrange(values) for _thing in range(things)]
    for who in range(people):
        for about in range(things):
            if luck.random() < 0.7:
                chosen = truth[about] if luck.random() < 0.6 else luck.randrange(values)
                table[who, about] = chosen
                choices.append((who, about, chosen))
    theirs = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert krippendorff_alpha(choices) == pytest.approx(theirs, abs=1e-12)


def test_alpha_by_hand_and_where_it_says_nothing() -> None:
    both = [(who, about, value) for about, value in enumerate("aab") for who in "xy"]
    assert krippendorff_alpha(both) == 1.0
    # a|a, a|b: n = 4, disagreeing 2, by chance 16 - 9 - 1 = 6: 1 - 3 * 2 / 6
    assert krippendorff_alpha([(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (1, 1, "b")]) == 0.0
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([(0, 0, "a"), (0, 1, "b")]) is None  # one person
    assert krippendorff_alpha([(0, 0, "a"), (1, 0, "a")]) is None  # always the same


# Questions


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"}', "a prompt with two answers is expected"),
        ('{"prompt": "a", "answers": ["b"]}', "a prompt with two answers is expected"),
        ('{"prompt": "a", "answers": ["b", " "]}', "an answer is empty"),
        ('{"prompt": "a", "answers": ["b", 3]}', "or is no text"),
        ('{"prompt": "a", "answers": ["b", " B "]}', "both answers are the same"),
        (json.dumps({"prompt": "a", "answers": ["b", "c" * 20_001]}), "more than 20,000"),
        ("{'prompt'", "not JSON"),
        ("[]", "a list where an object is expected"),
    ],
)
def test_a_bad_question_is_named_with_its_line(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"prompt": "a", "answers": ["b", "c"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as refusal:
        read_questions(path)
    assert "answers.jsonl:2: " in str(refusal.value)


def test_no_questions_and_no_prompts_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"empty\.jsonl"):
        read_questions(empty)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffOne?\n\nTwo?\r\nOne?\n", encoding="utf-8")
    assert read_prompts(prompts) == ["One?", "Two?"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        read_prompts(tmp_path / "latin.txt")


# On paper


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    lines = [{"prompt": one.prompt, "answers": one.answers} for one in QUESTIONS[:5]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def collect(answers: Path, *more: str) -> int:
    out = str(answers.with_name("choices.jsonl"))
    arguments = ["collect", str(EXAMPLE), "--answers", str(answers), "--out", out, *more]
    return main(["finetune", "charter", *arguments])


def test_a_sheet_is_printed_and_what_was_ticked_is_typed_in(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = answers.with_name("sheet.html")
    assert collect(answers, "--sheet", str(sheet)) == 0
    page = sheet.read_text(encoding="utf-8")
    assert "http" not in page
    assert page.count("Both are bad") == 5
    typed = answers.with_name("typed.txt")
    typed.write_text("A1\nq\nb 2\nn\n\nx\n", encoding="utf-8")
    for line in ("", "b9\n.\n"):
        with typed.open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            assert collect(answers, "--enter", " Old  Tesa ", "--json") == 0
        typed.write_text(line or "b9\na\n", encoding="utf-8")
    said = capsys.readouterr()
    (mark,) = set(re.findall("sheets marked ([0-9a-f]{6});", said.err))
    assert f">{mark}<" in page
    assert collect(answers, "--sheet", str(sheet), "--seed", "1") == 0
    assert f">{mark}<" not in sheet.read_text(encoding="utf-8"), "another order, another mark"
    assert "a or b: which answer was ticked" in said.err  # to q
    assert "there are 2 principles, not 9" in said.err
    told = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    assert [one["questions"] for one in told] == [4, 5]
    kept = rows_of(log_of(answers.with_name("choices.jsonl")))
    assert {row["who"] for row in kept} == {"Old Tesa"}
    assert [row["principle"] for row in kept[:3]] == ["sources", "together", ""]
    shown = defaultdict(list)
    for row in kept[:2]:  # the left one of the page is the A of the sheet, whoever ticks it
        question = next(one for one in QUESTIONS if one.id == row["question"])
        left, right = question.answers if row["left"] == "first" else question.answers[::-1]
        shown[question.prompt] = [page.index(left), page.index(right)]
        assert page.index(left) < page.index(right)
    assert [row["chosen"] == row["left"] for row in kept[:2]] == [True, False]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--prompts", "p.txt"], "--answers and --prompts exclude each other"),
        (["--out", "nowhere/choices.jsonl"], "in a folder that exists"),
        (["--enter", " "], "a name has 1 to 40 letters"),
        (["--sheet", "nowhere/sheet.html"], "no such folder"),
    ],
)
def test_what_collect_cannot_do_is_said(
    more: list[str], says: str, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(answers, *more) == 1
    assert says in capsys.readouterr().err


def test_without_questions_collect_says_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "choices.jsonl")
    assert main(["finetune", "charter", "collect", str(EXAMPLE), "--out", out]) == 1
    assert "add --answers FILE" in capsys.readouterr().err
    arguments = ["--out", out, "--prompts", "p.txt"]
    assert main(["finetune", "charter", "collect", str(EXAMPLE), *arguments]) == 1
    assert "add --base CHECKPOINT" in capsys.readouterr().err
