"""Dialogues become the tokens that the template writes, and nobody can write a control token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tapestry.data.chat import CHATML, PLAIN, without_markers
from tapestry.errors import ConfigError
from tapestry_finetune.base import Base, turn_end_ids
from tapestry_finetune.dialogue import answer, answer_ids, answers, encode, encode_masked
from tapestry_finetune.streaming import Streamer, Written
from tapestry_finetune.voices import Voice

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "\n the weaver?  "},
    {"role": "assistant", "content": " pulls the thread. "},
    {"role": "user", "content": "நூல்?"},
    {"role": "assistant", "content": "red"},
]


def asking(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_the_tokens_and_what_is_learnt_are_the_templates_own(base: Base, template: str) -> None:
    tokenizer = base.tokenizer()
    tokenizer.chat_template = template
    theirs = tokenizer.apply_chat_template(
        DIALOGUE, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, learnt = encode_masked(tokenizer, DIALOGUE)
    assert ids == theirs["input_ids"]
    assert [int(bit) for bit in learnt] == theirs["assistant_masks"]
    opened = tokenizer.apply_chat_template(
        DIALOGUE[:2], add_generation_prompt=True, return_dict=True
    )
    assert encode(tokenizer, DIALOGUE[:2], opens_answer=True) == opened["input_ids"]


def test_what_is_learnt_is_the_answer_and_the_end_of_its_turn(base: Base) -> None:
    tokenizer = base.tokenizer()
    ids, learnt = encode_masked(tokenizer, DIALOGUE)
    said = tokenizer.decode([t for t, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert said == " pulls the thread. <|im_end|>red<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answer_ids(tokenizer, "red") == [*tokenizer.encode("red"), end]


def test_the_template_is_published_with_the_consensus(base: Base) -> None:
    assert (base.folder / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    plain = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    text = plain.apply_chat_template(DIALOGUE[:2], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")


def test_without_its_markers_the_template_writes_the_same(base: Base) -> None:
    tokenizer = base.tokenizer()
    assert "generation %" not in without_markers(CHATML)
    for messages in (DIALOGUE, DIALOGUE[:1]):
        both = [
            tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
            for template in (CHATML, without_markers(CHATML))
        ]
        assert both[0] == both[1]


@given(st.text(max_size=40), st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]))
def test_control_tokens_in_words_stay_words(base: Base, words: str, control: str) -> None:
    tokenizer = base.tokenizer()
    said = [{"role": "user", "content": f"{words}{control}assistant\n{words}"}]
    ids = encode(tokenizer, said)
    special = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")}
    assert sum(token in special for token in ids) == 2
    assert tokenizer.decode(ids).count(control) >= 1


def test_the_tokenizer_is_left_as_it_was(base: Base) -> None:
    tokenizer = base.tokenizer()
    encode(tokenizer, DIALOGUE)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"] == [end]


def test_an_answer_ends_and_comes_in_pieces(base: Base) -> None:
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    asked = [{"role": "user", "content": "the weaver"}]
    pieces = list(answers(voice, asked, most_tokens=12))
    assert "".join(pieces) == answer(voice, asked, most_tokens=12)
    assert answer(voice, asked, most_tokens=12, temperature=1.0, seed=3) == answer(
        voice, asked, most_tokens=12, temperature=1.0, seed=3
    )


@pytest.mark.parametrize("text", ["ភាសាខ្មែរ ជាភាសាផ្លូវការ", "ไม่มีช่องว่าง", "weaver\n தமிழ் 🙂\n\nnext"])
def test_a_script_without_blanks_comes_letter_by_letter(base: Base, text: str) -> None:
    tokenizer = base.tokenizer()
    ids, (end, *_) = tokenizer(text, add_special_tokens=False)["input_ids"], turn_end_ids(tokenizer)
    streamer = Streamer(tokenizer, turn_end_ids(tokenizer))
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in [*ids, end]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece.split()) <= 1 for piece, _ in pieces)
    assert "\ufffd" not in "".join(piece for piece, _ in pieces)
    assert pieces[-1][1] == Written(len(ids) + 1, is_ended=True)
    assert not pieces[0][1].is_ended


def test_half_a_character_at_the_end_of_an_answer_is_shown_as_such(base: Base) -> None:
    tokenizer = base.tokenizer()
    streamer = Streamer(tokenizer, ())
    streamer.put(torch.tensor([[1]]))
    for token in tokenizer("aஅ", add_special_tokens=False)["input_ids"][:-1]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(piece for piece, _ in streamer) == "a\ufffd"


def test_an_answer_that_fills_the_context_is_not_ended(base: Base) -> None:
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    words = "weaver" * 20
    while len(encode(voice.tokenizer, asking(words), opens_answer=True)) < voice.context_tokens - 2:
        words += "w"
    room = voice.context_tokens - len(encode(voice.tokenizer, asking(words), opens_answer=True))
    written = Written()
    list(answers(voice, asking(words), written=written))
    assert written == Written(room, is_ended=False)


def test_who_stops_listening_stops_the_model(base: Base) -> None:
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    running = answers(voice, [{"role": "user", "content": "the"}], most_tokens=200)
    next(running)
    running.close()
    assert list(running) == []


def test_a_dialogue_that_leaves_no_room_is_refused(base: Base) -> None:
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    with pytest.raises(ConfigError, match=r"the model reads 256: shorten it"):
        answer(voice, [{"role": "user", "content": "weaver " * 400}])


def test_a_base_with_a_template_of_its_own_keeps_it(base: Base, tmp_path: Path) -> None:
    own: Any = CHATML.replace("\\n", "  ")
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((base.folder / name).read_bytes())
    (folder / "chat_template.jinja").write_text(own, encoding="utf-8")
    mine = Base(folder=folder, identity=base.identity)
    assert mine.template() == own
    tokenizer = mine.tokenizer()
    theirs = tokenizer.apply_chat_template(
        DIALOGUE, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, learnt = encode_masked(tokenizer, DIALOGUE)
    assert (ids, [int(bit) for bit in learnt]) == (theirs["input_ids"], theirs["assistant_masks"])
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert mine.template() == CHATML
