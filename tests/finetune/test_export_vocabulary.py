"""llama.cpp reads the tokens that the stage `vocab` has added as training did."""

from pathlib import Path

import torch

from tapestry_finetune.base import Base
from tapestry_finetune.export.gguf_files import Described, write_gguf
from tapestry_finetune.export.reading_back import PROMPTS
from tapestry_finetune.gathering import gather
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.vocabulary import extend_model, extended_tokenizer, make_extension
from tests.finetune.consensus import tamil, write_recipe, write_texts
from tests.finetune.llama_cpp import llama_cpp


def test_llama_cpp_reads_an_extended_vocabulary(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("vocab", "language"))
    write_texts(tmp_path / "text.jsonl", tamil())
    text = recipe.read_text(encoding="utf-8").replace('["eus"]', '["tam"]')
    recipe.write_text(text, encoding="utf-8")
    loaded = load_recipe(recipe)
    extension = make_extension(base, gather(loaded, recipe), loaded, tmp_path, lambda _said: None)
    assert extension is not None
    module, tokenizer = base.load("cpu"), extended_tokenizer(base, extension)
    extend_model(module, extension)
    path = tmp_path / "extended.gguf"
    write_gguf(path, module, tokenizer, described=Described(name="extended"), type_name="f32")
    fresh = tamil(10, seed=77)
    assert max(tokenizer(fresh[0])["input_ids"]) >= extension.first, "new tokens are met"
    with llama_cpp(path) as engine:
        for text in (*fresh, *PROMPTS):
            assert engine.tokens(text) == list(tokenizer(text)["input_ids"]), text
        ids = list(tokenizer(fresh[0])["input_ids"])[:40]
        with torch.inference_mode():
            done = module.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        expected = done[0, len(ids) :].tolist()
        said = engine.greedy(ids, 8)
    assert said == expected[: len(said)]
    assert said
