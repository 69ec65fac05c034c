"""Rows of an evaluation that stand in the training data."""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestry.errors import ConfigError
from tapestry_finetune.rows.kinds import Origin, TextRow
from tapestry_finetune.rows.overlap import SHARED_LETTERS, Overlap, overlap

QUESTION = (
    "Which river did the weavers of the upper town dam in the year of the long winter, and why?"
)


def rows(*texts: str) -> list[TextRow]:
    return [TextRow(text, Origin("train.txt", number)) for number, text in enumerate(texts, 1)]


def suite(folder: Path, *items: Any) -> Path:
    file = folder / "suite.jsonl"
    file.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return file


def compared(folder: Path, texts: list[str], *items: Any) -> Overlap:
    return overlap(rows(*texts), [suite(folder, *items)])


def noise(seed: int, letters: int) -> str:
    draw = random.Random(seed)  # noqa: S311 - nothing is secret here
    return "".join(draw.choices(string.ascii_lowercase, k=letters))


def test_a_question_that_stands_in_the_data_is_named(tmp_path: Path) -> None:
    texts = ["Nothing of it.", f"He asked: «{QUESTION.upper()}»  and laughed."]
    other = {"prompt": "What is woven on the loom that stands in the lower town's hall?"}
    found = compared(tmp_path, texts, other, {"prompt": QUESTION, "accept": ["the Ulm"]})
    assert (found.rows, found.compared) == (2, 2)
    (leak,) = found.leaks
    assert leak.evaluation == f"{tmp_path / 'suite.jsonl'}:2"
    assert leak.training == "train.txt:2"
    assert leak.share == 1.0


def test_a_short_text_has_leaked_only_as_a_whole(tmp_path: Path) -> None:
    short = "Who dammed the river above the town?"
    texts = ["who dammed the river, ABOVE the town", "Who dammed the river above the mill?"]
    others = [{"text": noise(seed, 25)} for seed in range(40)]
    for items in ([{"text": short}], [{"text": short}, *others]):
        found = compared(tmp_path, texts, *items)
        assert [leak.training for leak in found.leaks] == ["train.txt:1"]


def test_what_is_too_short_is_not_compared_and_said(tmp_path: Path) -> None:
    found = compared(tmp_path, ["four"], {"prompt": "2 + 2?", "accept": ["four"]})
    assert (found.rows, found.compared, found.leaks) == (1, 0, [])


def test_a_form_of_words_that_all_questions_share_is_no_leak(tmp_path: Path) -> None:
    form = "Read the following passage with care and then answer the question below in one word. "
    items = [{"prompt": form + noise(seed, 80)} for seed in range(40)]
    texts = [form + noise(100, 80), form + noise(7, 80)]
    assert [leak.training for leak in compared(tmp_path, texts, *items).leaks] == ["train.txt:2"]


def test_texts_inside_lists_and_tables_are_compared(tmp_path: Path) -> None:
    item = {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": QUESTION}]}
    assert len(compared(tmp_path, [QUESTION], item).leaks) == 1


@given(
    before=st.integers(0, 90),
    shared=st.integers(SHARED_LETTERS - 1, 3 * SHARED_LETTERS),
    at=st.integers(0, 90),
    others=st.sampled_from([0, 40]),
)
def test_a_run_is_found_wherever_it_stands_and_only_if_it_is_long_enough(
    tmp_path_factory: pytest.TempPathFactory, before: int, shared: int, at: int, others: int
) -> None:
    run = noise(1, shared)
    text = f"{noise(2, before).replace(run[0], '')}A{run}B{noise(3, 70)}"
    item = f"{noise(4, at)}C{run}D{noise(5, 70)}"
    others = [{"text": noise(seed, 25)} for seed in range(10, 10 + others)]
    found = compared(tmp_path_factory.mktemp("any"), [text], {"text": item}, *others)
    assert bool(found.leaks) == (shared >= SHARED_LETTERS)
    if found.leaks:
        letters = sum(letter.isalnum() for letter in item)
        assert found.leaks[0].share == pytest.approx(shared / letters)


def test_text_that_repeats_itself_takes_no_time_without_end(tmp_path: Path) -> None:
    found = compared(tmp_path, ["ha" * 30_000], {"text": "ha" * 20_000})
    assert len(found.leaks) == 1


def test_an_evaluation_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.jsonl").write_text('{"prompt": "x"}\n{"prompt"\n')
    with pytest.raises(ConfigError, match=r"suite\.jsonl:2: not JSON"):
        overlap(rows("x"), [tmp_path / "suite.jsonl"])
