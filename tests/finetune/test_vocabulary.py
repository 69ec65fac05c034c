"""New tokens make a script cheap, and no other language is read otherwise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer

from tapestry.data.tokenizer import load_tokenizer
from tapestry.errors import ConfigError
from tapestry_finetune.base import Base
from tapestry_finetune.gathering import gather
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.vocabulary import (
    Extension,
    extend_model,
    extended_tokenizer,
    keep_others,
    learn_merges,
    make_extension,
)
from tests.finetune.consensus import known, ours, tamil, write_recipe, write_texts

EVERY_BLOCK = [
    chr(start + 37) for start in range(0x80, 0x2FFFF, 0x100) if start not in range(0xD800, 0xE000)
]


@pytest.fixture(scope="module")
def extension(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Extension:
    folder = tmp_path_factory.mktemp("vocabulary")
    recipe = write_recipe(folder, base.folder, stages=("vocab", "language"))
    write_texts(folder / "text.jsonl", tamil())
    text = recipe.read_text(encoding="utf-8").replace('["eus"]', '["tam"]')
    recipe.write_text(text, encoding="utf-8")
    loaded = load_recipe(recipe)
    said: list[str] = []
    made = make_extension(base, gather(loaded, recipe), loaded, folder, said.append)
    assert made is not None
    assert said[0].startswith(f"vocab: {len(made)} new tokens, begun by ")
    again = make_extension(base, gather(loaded, recipe), loaded, folder, said.append)
    assert again is not None
    assert torch.equal(again.rows["embedding"], made.rows["embedding"])
    return made


def bytes_per_token(tokenizer: Any, texts: Sequence[str]) -> float:
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


def test_a_script_becomes_several_times_cheaper(base: Base, extension: Extension) -> None:
    fresh = tamil(30, seed=77)
    before = bytes_per_token(base.tokenizer(), fresh)
    after = bytes_per_token(extended_tokenizer(base, extension), fresh)
    assert before < 1.1  # a token a byte
    assert after > 3 * before


def test_no_other_language_is_read_otherwise(base: Base, extension: Extension) -> None:
    plain, extended = base.tokenizer(), extended_tokenizer(base, extension)
    for text in [
        *known(60, seed=8),
        *ours(60, seed=9),
        "Привет мир",
        "你好",
        " नमस्ते दुनिया",
        "12 + 3",
    ]:
        assert extended(text)["input_ids"] == plain(text)["input_ids"]


def test_every_text_comes_back_to_the_byte(base: Base, extension: Extension) -> None:
    extended = extended_tokenizer(base, extension)
    for text in [*EVERY_BLOCK, *tamil(5), "".join(EVERY_BLOCK), "நூல்" + "x" + "நூல்"]:
        ids = extended(text)["input_ids"]
        assert extended.decode(ids, skip_special_tokens=False) == text


def test_the_best_of_the_cheap_beginnings_is_kept(extension: Extension) -> None:
    assert set(extension.measured) == {"base", "mean of pieces", "random", "zero"}
    best = min(bits for name, bits in extension.measured.items() if name != "base")
    assert best < extension.measured["base"]


def test_plain_transformers_loads_model_and_tokenizer(
    base: Base, extension: Extension, tmp_path: Path
) -> None:
    module = base.load("cpu")
    extend_model(module, extension)
    module.save_pretrained(tmp_path)
    extended_tokenizer(base, extension).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer(tamil(1)[0], return_tensors="pt", return_token_type_ids=False)
    assert int(ids["input_ids"].max()) >= extension.first
    assert model.get_input_embeddings().num_embeddings == extension.first + len(extension)
    with torch.no_grad():
        ours_, theirs = (m(**ids).logits for m in (module, model))
    torch.testing.assert_close(ours_, theirs)


def test_a_merge_that_another_language_would_feel_is_taken_out(base: Base) -> None:
    tokenizer = load_tokenizer(base.folder)
    merges = learn_merges(tokenizer, tamil(), most=40)
    kin = ["தறி"]  # shares its first bytes with some of the words
    kept, extended = keep_others(tokenizer, merges, kin, 1000)
    assert len(kept) < len(merges)
    assert extended.encode(kin[0]).ids == tokenizer.encode(kin[0]).ids
    assert keep_others(tokenizer, merges, known(20), 1000)[0] == merges


def test_text_in_a_known_script_gives_no_token(base: Base) -> None:
    assert learn_merges(load_tokenizer(base.folder), ours(), most=40) == []


def test_another_kind_of_tokenizer_is_refused() -> None:
    other: Any = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106
    with pytest.raises(ConfigError, match="not a byte-level BPE"):
        learn_merges(other, ["x"], most=3)


def test_the_same_text_gives_the_same_tokens(base: Base) -> None:
    tokenizer = load_tokenizer(base.folder)
    first, second = (learn_merges(tokenizer, tamil(), most=50) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
