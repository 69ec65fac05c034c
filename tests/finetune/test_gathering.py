"""What a recipe's files give to learn from, and what is held out of them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tapestry.data.language import identify
from tapestry.errors import ConfigError
from tapestry_finetune.base import Base
from tapestry_finetune.charter.cases import pair_rows
from tapestry_finetune.charter.settings import load_charter
from tapestry_finetune.examples import chat_examples, split, text_examples, with_replay
from tapestry_finetune.gathering import gather, replay_of
from tapestry_finetune.measuring import held_out_measure
from tapestry_finetune.planning import plan
from tapestry_finetune.publishing import in_pieces
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.rows.cost import english as english_text
from tapestry_finetune.rows.kinds import ThumbRow
from tapestry_finetune.run import Telling, prepare
from tests.finetune.conftest import Localized
from tests.finetune.consensus import known, write_recipe, write_texts
from tests.finetune.test_values import write_charter


def test_thumbs_that_are_all_alike_are_refused(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    row = {"prompt": "zer?", "completion": "haria", "label": True}
    lines = [json.dumps(row | {"prompt": f"zer {n}?"}) for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="all 20 answers are good"):
        gather(load_recipe(recipe), recipe)


def test_pairs_beside_thumbs_and_a_charters_cases_are_learnt_as_thumbs(
    base: Base, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    thumbs = [{"prompt": f"zer {n}?", "completion": "bai", "label": n % 2 == 0} for n in range(20)]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, thumbs)), encoding="utf-8")
    charter = load_charter(write_charter(tmp_path / "charter.toml"))
    text = recipe.read_text(encoding="utf-8")
    text = text.replace('["pairs.jsonl"]', '["pairs.jsonl", "thumbs.jsonl"]')
    text = text.replace('languages = ["eus"]', 'languages = ["eus"]\ncharter = "charter.toml"')
    recipe.write_text(text, encoding="utf-8")
    found = gather(load_recipe(recipe), recipe)
    cases = pair_rows(charter)
    assert len(found.preferences) + found.held_out_of("values") == 2 * 60 + 20 + 2 * len(cases)
    assert all(isinstance(row, ThumbRow) for row in found.preferences)
    assert cases
    for case in cases:
        assert [row for row in found.preferences if row.origin == case.origin] == [
            ThumbRow(case.prompt, case.chosen, is_good=True, origin=case.origin),
            ThumbRow(case.prompt, case.rejected, is_good=False, origin=case.origin),
        ]
    assert any("60 pairs are learnt as a good and a bad answer each" in line for line in found.said)


def test_what_is_held_out_of_thumbs_is_measured_between_steps(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    likely, unlikely = known(24, seed=9), ["\u0b85\u0b95" * 20] * 24

    def measured(good: Sequence[str], bad: Sequence[str]) -> float:
        rows = [
            {"prompt": f"zer {n}?", "completion": text, "label": label}
            for n, both in enumerate(zip(good, bad, strict=True))
            for text, label in zip(both, (True, False), strict=True)
        ]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        prepared = prepare(recipe, Telling())
        tokenizer = base.tokenizer()
        measure = held_out_measure("values", prepared.gathered, tokenizer, prepared.chosen)
        assert measure is not None
        return measure(base.load("cpu"))

    assert measured(likely, unlikely) == 0.0
    assert measured(unlikely, likely) == 1.0


def test_rows_of_another_kind_are_refused(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    text = recipe.read_text(encoding="utf-8").replace('["text.jsonl"]', '["chats.jsonl"]')
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.text: these files hold chat, expected text"):
        gather(load_recipe(recipe), recipe)


def test_what_is_held_out_is_the_same_on_every_run_and_never_learnt(
    base: Base, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    first, second = (gather(load_recipe(recipe), recipe) for _ in range(2))
    assert first.held_out == second.held_out != []
    assert not {row.text for row in first.text} & set(first.held_out_text())
    assert len(first.text) + len(first.held_out) == 80


def test_rows_longer_than_a_sequence_are_counted_and_named(base: Base) -> None:
    tokenizer = base.tokenizer()

    def said(length: int) -> list[dict[str, str]]:
        answer = {"role": "assistant", "content": "warp " * length}
        return [{"role": "user", "content": "?"}, answer]

    dialogues = [said(2), said(2), said(90), said(2)]
    names = [f"chats.jsonl:{n}" for n in (1, 2, 3, 4)]
    made = chat_examples(tokenizer, dialogues, names, sequence_tokens=64)
    assert (len(made), made.counted.dropped) == (3, ["chats.jsonl:3"])
    assert made.counted.warning() == (
        "longer than a sequence and dropped, 1 row (25%): chats.jsonl:3; raise "
        "training.sequence_tokens, or shorten them"
    )
    with pytest.raises(ConfigError, match=r"all 1 rows are longer than 64 tokens \(first: a:1\)"):
        chat_examples(tokenizer, [said(90)], ["a:1"], sequence_tokens=64)


def test_long_text_is_cut_and_nothing_is_lost(base: Base) -> None:
    tokenizer = base.tokenizer()
    made = text_examples(tokenizer, known(3), sequence_tokens=16)
    ids = [token for piece in made.columns["input_ids"] for token in piece]
    assert tokenizer.decode(ids) == "".join(f"{text}<|endoftext|>" for text in known(3))
    assert max(map(len, made.columns["input_ids"])) == 16
    assert made.counted.cut == len(made) - 3


def test_replay_makes_its_share_of_the_tokens(base: Base) -> None:
    tokenizer = base.tokenizer()
    own = text_examples(tokenizer, known(60, seed=5), sequence_tokens=32)
    replay = text_examples(tokenizer, replay_of(base).learnt, sequence_tokens=32)
    mixed = with_replay(own, replay, 0.25, seed=1)
    added = mixed.counted.tokens - own.counted.tokens
    assert added / mixed.counted.tokens == pytest.approx(0.25, abs=0.01)
    assert mixed.columns == with_replay(own, replay, 0.25, seed=1).columns
    assert mixed.columns != with_replay(own, replay, 0.25, seed=2).columns
    found = replay_of(base)
    measured = [text for texts in found.measured.values() for text in texts]
    assert set(found.learnt) & set(measured) == set()
    assert measured


def test_every_language_of_the_replay_is_measured_and_replayed(base: Base, tmp_path: Path) -> None:
    said = {
        "eng": "The library opens its doors at nine in the morning, and everybody may read there.",
        "fra": "La bibliothèque ouvre ses portes à neuf heures du matin, et chacun peut y lire.",
        "ell": "Η βιβλιοθήκη ανοίγει τις πόρτες της στις εννέα το πρωί και όλοι διαβάζουν εκεί.",
    }
    documents = [f"{text} {number}." for text in said.values() for number in range(3)]
    (tmp_path / "replay.txt").write_text("\n\n".join(documents), encoding="utf-8")
    found = replay_of(dataclasses.replace(base, folder=tmp_path))
    assert sorted(
        found.learnt + [text for texts in found.measured.values() for text in texts]
    ) == sorted(documents)
    assert {identify(text) for text in found.learnt} == set(said)
    assert found.measured.keys() == said.keys()


def test_a_document_in_a_language_of_its_own_is_not_judged_by(base: Base, tmp_path: Path) -> None:
    """It is mistaken for it: Malay where all others are Indonesian, Danish where nothing is."""
    indonesian = (
        "Perpustakaan membuka pintunya pada pukul sembilan pagi karena semua orang bisa membaca "
        "di sana, kata pengurus kota kemarin siang."
    )
    malay = (
        "Perpustakaan dibuka pada pukul sembilan pagi kerana kerajaan negeri memberitahu bahawa "
        "semua orang boleh membaca di situ, kata beliau."
    )
    danish = "Biblioteket åbner klokken ni om morgenen, og alle må læse bøgerne dér hele dagen."
    assert [identify(text) for text in (indonesian, malay, danish)] == ["ind", "msa", "dan"]
    documents = [f"{indonesian} {number}." for number in range(12)] + [malay, danish]
    (tmp_path / "replay.txt").write_text("\n\n".join(documents), encoding="utf-8")
    found = replay_of(dataclasses.replace(base, folder=tmp_path))
    assert found.measured.keys() <= {"ind", "und"}
    assert "ind" in found.measured


def test_several_rows_are_always_on_both_sides() -> None:
    for count in (2, 3, 10):
        rows = list(range(count))
        for salt in "abcdef":
            kept, out = split(rows, [f"{salt}{n}" for n in rows], 0.05)
            assert kept
            assert out
            assert sorted(kept + out) == rows


def test_a_plan_counts_what_a_run_does(localized: Localized) -> None:
    made = plan(prepare(localized.recipe, Telling()), measure=False)
    assert [stage.stage for stage in made.stages] == ["language", "instruct", "values"]
    assert [stage.steps for stage in made.stages] == [60, 20, 12]
    language, instruct, values = made.stages
    assert language.learnt == language.tokens > 0
    assert 0 < instruct.learnt < instruct.tokens
    learnt = [piece for piece, is_learnt in values.shown if is_learnt]
    assert learnt[0].endswith("<|im_end|>")
    assert made.memory_bytes > made.needed_bytes > 0
    assert made.largest_micro_batch >= 4


def test_text_in_another_language_than_declared_is_warned_of(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    english = english_text().split(". ")
    write_texts(tmp_path / "text.jsonl", [f"{sentence}." for sentence in english])
    text = recipe.read_text(encoding="utf-8")
    for declared, is_warned in (("tam", True), ("eng", False)):
        changed = text.replace('languages = ["eus"]', f'languages = ["{declared}"]')
        recipe.write_text(changed, encoding="utf-8")
        said = "\n".join(gather(load_recipe(recipe), recipe).said)
        assert ("of data.text is not in tam but in English" in said) == is_warned


def test_few_long_documents_are_measured_in_pieces() -> None:
    """Of all their letters, in their order, cut at blanks where there are any."""
    prose = " ".join(f"word{number}" for number in range(900))
    for documents in ([prose], [prose, "short"], ["字" * 5_000], [f"{prose}\n\n{prose}"]):
        pieces = in_pieces(documents)
        assert "".join(pieces) == "".join(documents)
        assert 10 <= len(pieces) <= 14
    assert all(piece.endswith(" ") for piece in in_pieces([prose])[:-1])
    assert in_pieces(["short", "shorter"]) == ["short", "shorter"]
    many = [f"text {number}" * 99 for number in range(12)]
    assert in_pieces(many) == many
