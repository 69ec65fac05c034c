"""Measures on a real model that has learnt a little, against what torch and lm-eval say of it."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tapestry.errors import ConfigError
from tapestry_finetune.base import Base
from tapestry_finetune.dialogue import answer_ids, encode
from tapestry_finetune.evaluation.bits import bits_of, pieces
from tapestry_finetune.evaluation.contamination import contamination
from tapestry_finetune.evaluation.harness import require_harness, run_harness
from tapestry_finetune.evaluation.items import read_suite
from tapestry_finetune.evaluation.measuring import measure, read_material
from tapestry_finetune.evaluation.questions import measure_suite
from tapestry_finetune.evaluation.suites import Suites, load_suites
from tapestry_finetune.evaluation.survey import (
    Behaviour,
    Survey,
    jensen_shannon,
    load_asked,
    shares_of,
    stand_by_behaviour,
    stand_by_survey,
)
from tapestry_finetune.rows.reading import read_rows
from tapestry_finetune.scoring import answer_likelihoods, continuation_likelihoods
from tapestry_finetune.voices import Fit, Voice
from tests.finetune.tiny_assistant import (
    COLOURS,
    THINGS,
    dutch,
    english,
    make_tiny_base,
    voice_of,
    write_task,
)
from tests.threads import one_thread

HELD_OUT = 20_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    with one_thread():
        yield make_tiny_base(tmp_path_factory.mktemp("tiny") / "base", steps=80)


@pytest.fixture(scope="module")
def voice(base: Base) -> Voice:
    made = voice_of(base)
    torch.set_num_threads(1)
    return made


def nats_by_torch(voice: Voice, seen: list[int], said: list[int]) -> float:
    """Sum log p of `said` after `seen`, with nothing of ours."""
    with torch.no_grad():
        logits = voice.module(torch.tensor([seen + said])).logits[0].double()
    loss = torch.nn.functional.cross_entropy(
        logits[len(seen) - 1 : -1], torch.tensor(said), reduction="sum"
    )
    return -float(loss)


@given(length=st.integers(0, 60), window=st.integers(1, 20), context=st.integers(1, 20))
def test_every_token_is_predicted_once_and_after_enough(
    length: int, window: int, context: int
) -> None:
    context = min(context, window)
    tokens = list(range(1, length + 1))
    found = list(pieces(tokens, before=0, window=window, context=context))
    assert [token for _seen, said in found for token in said] == tokens
    for number, (seen, said) in enumerate(found):
        assert seen + said == list(range(seen[0], seen[0] + len(seen) + len(said)))
        assert len(seen) + len(said) <= window + 1
        assert len(seen) >= (context if number else 1)


def test_bits_are_those_of_torch(voice: Voice) -> None:
    texts = [english(HELD_OUT), "Wat?", dutch(HELD_OUT)]
    bits, text_bytes = bits_of(voice, texts)
    for text, found in zip(texts, bits, strict=True):
        ids = voice.tokenizer.encode(text, add_special_tokens=False)
        nats = nats_by_torch(voice, [voice.tokenizer.eos_token_id], ids)
        assert found == pytest.approx(-nats / math.log(2), rel=1e-5)
    assert list(text_bytes) == [len(text.encode()) for text in texts]


def test_it_has_learnt_both_languages(voice: Voice) -> None:
    bits, text_bytes = bits_of(voice, [english(HELD_OUT), dutch(HELD_OUT)])
    assert (bits / text_bytes).max() < 1.0  # below 8 where nothing was learnt


def test_more_context_is_never_worse_for_a_long_text(voice: Voice) -> None:
    text = " ".join(english(HELD_OUT + number) for number in range(8))
    side_by_side, overlapping = (
        bits_of(voice, [text], window_tokens=64, context_tokens=context)[0][0]
        for context in (1, 32)
    )
    assert overlapping < side_by_side


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [None, 48])
def test_bits_per_byte_are_those_of_lm_eval(
    voice: Voice, tmp_path: Path, window: int | None
) -> None:
    pytest.importorskip("lm_eval")
    texts = [english(HELD_OUT), dutch(HELD_OUT), "Ünïcödé: \u4f60\u597d."]
    if window is not None:
        texts.append(" ".join(english(HELD_OUT + number) for number in range(6)))
    found = run_harness(voice, write_task(tmp_path / "tasks", texts), window_tokens=window)
    bits, text_bytes = bits_of(voice, texts, window_tokens=window or 1024, context_tokens=1)
    assert bits.sum() / text_bytes.sum() == pytest.approx(found["bits"]["bits_per_byte"], rel=1e-5)


def test_bits_of_held_out_answers_are_those_of_torch(voice: Voice, tmp_path: Path) -> None:
    rows = [
        {"question": "What colour is the cat?", "answer": f"The cat is {english(HELD_OUT)}"},
        {"question": "Welke kleur heeft de kat?", "answer": f"De 你 kat is {dutch(HELD_OUT)}"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "chats.jsonl").write_text(lines, encoding="utf-8")
    suites, _floor = load_suites(tmp_path)
    material = read_material(suites)
    (found,) = measure(voice, material).series.values()
    assert found.key == "answer_bits:chats"
    for bits, text_bytes, row in zip(found.amounts, found.weights, rows, strict=True):
        user = {"role": "user", "content": row["question"]}
        seen = encode(voice.tokenizer, [user], opens_answer=True)
        nats = nats_by_torch(voice, seen, answer_ids(voice.tokenizer, row["answer"]))
        assert bits == pytest.approx(-nats / math.log(2), rel=1e-4)
        assert text_bytes == len(row["answer"].encode())
    learnt = read_rows([tmp_path / "chats.jsonl"]).rows
    (read_before,) = contamination(material, learnt)
    assert (read_before["suite"], read_before["in the training rows"]) == ("chats", 2)
    (tmp_path / "chats.jsonl").write_text('{"text": "no conversation"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="holds text, expected conversations"):
        read_material(suites)


def test_what_does_not_fit_into_the_context_is_counted_and_said(voice: Voice) -> None:
    most = voice.context_tokens
    asked = dataclasses.replace(voice, fit=Fit())
    user = [{"role": "user", "content": "red"}]
    likelihoods = answer_likelihoods(asked, [(user, "red"), (user, "red " * 2 * most)])
    assert likelihoods[1].tokens == most - 1
    assert asked.fit == Fit(asked=2, answers_cut=1)
    continuation_likelihoods(asked, [([5] * most, [5]), ([5] * (most - 1), [5])])
    assert asked.fit == Fit(asked=4, answers_cut=1, prompts_cut=1)
    assert asked.fit.said(most).startswith("of 4 likelihoods 1 were asked without the beginning")
    assert voice.fit.said(most) == ""


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(ConfigError, match="no task here"):
        require_harness(tmp_path)


def test_the_likeliest_choice_is_that_of_torch(voice: Voice, tmp_path: Path) -> None:
    path = tmp_path / "colours.jsonl"
    rows = [
        {
            "prompt": f"What colour is the {thing}?",
            "choices": [f"The {thing} is {colour}." for colour in COLOURS],
            "answer": number % 4,
            "plain": bool(number % 2),
        }
        for number, thing in enumerate(THINGS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        one.measure: one
        for one in measure_suite(
            voice,
            read_suite(path),
            window_tokens=128,
            context_tokens=64,
            on_progress=lambda _what, _done, _of: None,
        )
    }
    for number, row in enumerate(rows):
        nats = [choice_nats(voice, row, choice) for choice in row["choices"]]
        per_byte = [n / len(c.encode()) for n, c in zip(nats, row["choices"], strict=True)]
        assert found["choice"].amounts[number] == (np.argmax(nats) == row["answer"])
        assert found["choice_per_byte"].amounts[number] == (np.argmax(per_byte) == row["answer"])


def choice_nats(voice: Voice, row: dict, choice: str) -> float:
    asked = [{"role": "user", "content": row["prompt"]}]
    if row["plain"]:
        seen = [
            voice.tokenizer.eos_token_id,
            *voice.tokenizer.encode(row["prompt"], add_special_tokens=False),
        ]
        return nats_by_torch(
            voice, seen, voice.tokenizer.encode(f" {choice}", add_special_tokens=False)
        )
    seen = encode(voice.tokenizer, asked, opens_answer=True)
    whole = encode(voice.tokenizer, [*asked, {"role": "assistant", "content": choice}])
    break_after = voice.tokenizer.encode("\n", add_special_tokens=False)
    return nats_by_torch(voice, seen, whole[len(seen) : -len(break_after)])


def test_a_liking_for_a_place_cancels_over_all_orders() -> None:
    orders = list(itertools.permutations(range(3)))
    always_first = np.array([[2.0, 0.0, -1.0]] * len(orders))
    assert shares_of(always_first, orders) == pytest.approx([1 / 3] * 3)


def test_a_liking_for_an_option_stays_whatever_its_place() -> None:
    orders = list(itertools.permutations(range(3)))
    likes = np.log([0.7, 0.2, 0.1])
    nats = np.array([[likes[option] for option in order] for order in orders])
    assert shares_of(nats, orders) == pytest.approx([0.7, 0.2, 0.1])


def test_the_survey_asks_ten_things_on_two_axes_in_three_wordings() -> None:
    survey = load_asked(Suites(survey=True).survey, Survey, "survey")
    behaviour = load_asked(Suites(behaviour=True).behaviour, Behaviour, "behaviour")
    assert survey is not None
    assert behaviour is not None
    assert len(survey.item) == len(behaviour.scenario) == 10
    for axis in ("secular", "expressive"):
        assert sum(one.axis == axis for one in survey.item) == 5
        assert sum(one.axis == axis for one in behaviour.scenario) == 5
    assert all(len(set(one.asks)) >= 3 for one in survey.item)
    assert all(min(one.positions) == -1 and max(one.positions) == 1 for one in survey.item)


SURVEY = """
name = "two questions"
frame = "{ask}\\n{options}"
letters = ["A", "B", "C", "D"]
[[axis]]
id = "x"
low = "left"
high = "right"
[[item]]
id = "colour"
axis = "x"
asks = ["Which colour?", "What colour is the cat?", "Welke kleur?"]
options = ["red", "blue"]
positions = [-1, 1]
shares = [30, 10]
"""


@pytest.mark.parametrize("marks", ["AB", ("A!?", "B")])
def test_a_position_is_what_torch_makes_of_all_orders(
    voice: Voice, tmp_path: Path, marks: tuple[str, str]
) -> None:
    path = tmp_path / "survey.toml"
    path.write_text(SURVEY.replace('"A", "B"', f'"{marks[0]}", "{marks[1]}"'))
    survey = load_asked(path, Survey, "survey")
    assert survey is not None
    found = stand_by_survey(voice, survey, on_progress=lambda _what, _done, _of: None)
    letters = [voice.tokenizer.encode(letter, add_special_tokens=False) for letter in marks]
    for number, ask in enumerate(survey.item[0].asks):
        blue = []
        first, second = marks
        for text, place in (
            (f"{ask}\n{first}) red\n{second}) blue", 1),
            (f"{ask}\n{first}) blue\n{second}) red", 0),
        ):
            asked = [{"role": "user", "content": text}]
            seen = encode(voice.tokenizer, asked, opens_answer=True)
            odds = [math.exp(nats_by_torch(voice, seen, letter)) for letter in letters]
            blue.append(odds[place] / sum(odds))
        position = 2 * sum(blue) / 2 - 1
        assert found.positions["colour"][number] == pytest.approx(position, abs=1e-5)
    shares = np.array(found.options["colour"])
    expected = 1 - jensen_shannon(shares, np.array([0.75, 0.25]))
    assert found.similarity["colour"] == pytest.approx(expected)


def test_behaviour_is_the_likelier_answer_token_for_token(voice: Voice, tmp_path: Path) -> None:
    path = tmp_path / "behaviour.toml"
    path.write_text(
        SURVEY[: SURVEY.index("[[item]]")]
        .replace('frame = "{ask}\\n{options}"', "")
        .replace('letters = ["A", "B", "C", "D"]', "")
        + '[[scenario]]\nid = "cat"\naxis = "x"\nprompt = "What colour is the cat?"\n'
        'low = "De kat is rood, en de tuin is groen."\nhigh = "The cat is red."\n'
    )
    behaviour = load_asked(path, Behaviour, "behaviour")
    assert behaviour is not None
    found = stand_by_behaviour(voice, behaviour, on_progress=lambda _what, _done, _of: None)
    row = {"prompt": "What colour is the cat?", "plain": False}
    means = []
    for text in (behaviour.scenario[0].low, behaviour.scenario[0].high):
        tokens = len(voice.tokenizer.encode(text, add_special_tokens=False)) + 1  # the turn's end
        means.append(choice_nats(voice, row, text) / tokens)
    share = 1 / (1 + math.exp(means[0] - means[1]))
    assert found.axis("x") == pytest.approx(2 * share - 1, abs=1e-5)


def test_distances_between_answers() -> None:
    assert jensen_shannon(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0.0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('axis = "x"', 'axis = "y"', "axis 'y' is none of x"),
        ("positions = [-1, 1]", "positions = [-1]", "1 positions for 2 options"),
        ("positions = [-1, 1]", "positions = [-1, 2]", "less than or equal to 1"),
        ('"Which colour?", ', "", "at least 3 items"),
        ("shares = [30, 10]", "shares = [0, 0]", "shares must be 0 or more"),
        ("{options}", "", "must hold {ask} and {options}"),
    ],
)
def test_a_survey_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "survey.toml"
    path.write_text(SURVEY.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        load_asked(path, Survey, "survey")
