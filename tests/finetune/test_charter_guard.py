"""The guard: what is protected neither goes in nor comes out, not even half a phrase."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestry_finetune.charter.guard import ALLOWED, Guard
from tests.finetune.charters import SECRET, charter

PATTERNED = {
    "topic": "the well",
    "patterns": [r"deep\s?\bwell of \w+"],
    "refuse": True,
    "exclude_from_training": False,
    "answer": "Not mine to tell.",
}
OPEN = {"topic": "prices", "terms": ["old price"], "refuse": False}
GUARD = Guard(charter(protected=[SECRET, PATTERNED, OPEN], labels={"reason": "Garde : {topic}"}))


def shown(*pieces: str) -> str:
    return "".join(GUARD.stream(pieces))


def test_a_prompt_about_a_protected_topic_is_answered_in_the_models_place() -> None:
    ruling = GUARD.on_prompt("What happens on MASK\n night?")
    assert (ruling.is_allowed, ruling.reply) == (False, "Please ask the elders.")
    assert ruling.reason == "Garde : the night of masks"
    assert (ruling.topic, ruling.recognized_by) == ("the night of masks", "term 1")
    assert GUARD.on_answer("the deep well of Isk").recognized_by == "pattern 1"
    assert GUARD.on_prompt("What happens on a masked night?") == ALLOWED
    assert GUARD.on_prompt("the old price") == ALLOWED


def test_what_is_left_out_of_training_is_another_question_than_what_is_refused() -> None:
    assert GUARD.is_protected("It was the old price.") == "prices"
    assert GUARD.is_protected("After initiation") == "the night of masks"
    assert GUARD.is_protected("the deep well of Isk") is None
    assert GUARD.is_protected("") is None


def test_a_stream_lets_through_at_once_what_can_be_in_no_protected_phrase() -> None:
    pieces = iter(["Hello th", "ere, the ma", "sk ", "is old", ". Mask", " maker"])
    said: list[str] = []
    stream = iter(GUARD.stream(pieces))
    said.append(next(stream))
    assert said == ["Hello t"]  # the last letter waits for marks that may still come
    said += list(stream)
    assert said[1:] == ["here, the ", "mask is ol", "d. ", "Mask make", "r"]


def test_a_stream_never_lets_out_the_beginning_of_a_protected_phrase() -> None:
    stream = GUARD.stream(["On ", "mas", "k ", "ni", "ght, they dance"])
    assert "".join(stream) == "On \n\nPlease ask the elders."
    assert stream.ruling.topic == "the night of masks"
    assert shown("ma", "sk nightly") == "mask nightly"
    assert shown("mask nigh") == "mask nigh"
    assert shown("mask night") == "Please ask the elders."


def test_a_stream_that_is_ended_closes_its_source() -> None:
    asked: list[str] = []

    def source() -> Iterator[str]:
        try:
            for piece in ("A mask night", " is", " long"):
                asked.append(piece)
                yield piece
        finally:
            asked.append("closed")

    assert "".join(GUARD.stream(source())) == "A \n\nPlease ask the elders."
    assert asked == ["A mask night", " is", "closed"]


_WORDS = (
    "mask|Mask|ma|sk| |  |\n|night|nightly|ni|initi|ation|x|e|\u0301|\u200b|.|deep|well|of| a|"
    "\u4e00"
)


@given(st.lists(st.sampled_from(_WORDS.split("|")), max_size=14), st.randoms(use_true_random=False))
def test_a_stream_shows_the_same_however_it_is_cut(words: list[str], random: object) -> None:
    text = "".join(words)
    cuts = sorted(random.sample(range(len(text) + 1), min(4, len(text) + 1)))  # type: ignore[attr-defined]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = shown(text)
    assert shown(*pieces) == whole
    ruling = GUARD.on_answer(text)
    if ruling.is_allowed:
        assert whole == text
    else:
        said = whole.removesuffix(ruling.reply).removesuffix("\n\n")
        assert text.startswith(said)
        assert GUARD.on_answer(said) == ALLOWED


def test_a_charter_without_protected_topics_allows_everything() -> None:
    guard = Guard(charter())
    assert guard.on_prompt("mask night") == ALLOWED
    assert guard.is_protected("mask night") is None
    assert "".join(guard.stream(["mask ", "night"])) == "mask night"


@pytest.mark.parametrize("text", ["word " * 200_000, "mask " * 200_000, "\u0301" * 1_000_000])
def test_a_megabyte_is_ruled_on(text: str) -> None:
    began = time.process_time()
    assert GUARD.on_prompt(text) == ALLOWED
    assert GUARD.on_prompt(text + " mask night").topic == "the night of masks"
    assert time.process_time() - began < 60
