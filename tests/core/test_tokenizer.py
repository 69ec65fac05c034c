"""Byte-level tokenizers: every text comes back, and transformers reads them as we do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from tapestry.data.tokenizer import (
    BYTES_ONLY_VOCABULARY,
    byte_tokenizer,
    end_of_text_id,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
)
from tapestry.errors import ConfigError

FIVE_SCRIPTS = [
    "The quick brown fox isn't lazy.\n\n  Indented:\tx = 12345\r\n",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを。漢字も、カタカナも。",
    "ភាសាខ្មែរ\u200bគឺជាភាសា",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "🧶👩‍👩‍👧‍👦 e\u0301 \u00e9 \u2028 <|endoftext|> \x00\x7f",
]

_ENCODE_ELSEWHERE = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.loads(sys.argv[2])
ids = [tokenizer(text)["input_ids"] for text in texts]
print(json.dumps({
    "ids": ids,
    "texts": [tokenizer.decode(i) for i in ids],
    "eos": tokenizer.eos_token_id,
    "pad": tokenizer.pad_token_id,
    "size": len(tokenizer),
    "longest": tokenizer.model_max_length,
    "ours": "tapestry" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(FIVE_SCRIPTS, vocabulary_size=400)


def saved(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer, model_max_length=2048).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    return folder


def foreign(*specials: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


def test_bytes_alone_make_a_vocabulary_of_260() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.get_vocab_size() == BYTES_ONLY_VOCABULARY == 260
    assert tokenizer.id_to_token(0) == "<|endoftext|>"
    assert tokenizer.id_to_token(1) == "<|padding|>"
    assert [tokenizer.id_to_token(i) for i in (2, 3)] == ["<|im_start|>", "<|im_end|>"]
    for text in FIVE_SCRIPTS[:-1]:
        assert len(tokenizer.encode(text).ids) == len(text.encode())


@pytest.mark.parametrize("size", [260, 300, 350])
def test_every_text_comes_back_to_the_byte(size: int) -> None:
    tokenizer = train_tokenizer(FIVE_SCRIPTS[:2], vocabulary_size=size)
    assert tokenizer.get_vocab_size() == size
    for text in FIVE_SCRIPTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_training_makes_texts_shorter(trained: Tokenizer) -> None:
    text = FIVE_SCRIPTS[1]
    assert len(trained.encode(text).ids) < len(text.encode()) / 2


def test_the_pre_tokenizer_is_that_of_the_qwen2_family(trained: Tokenizer) -> None:
    assert trained.pre_tokenizer is not None
    words = [word for word, _ in trained.pre_tokenizer.pre_tokenize_str("We're 12  ok\n\n!")]
    assert words == ["We", "'re", "Ġ", "1", "2", "Ġ", "Ġok", "ĊĊ", "!"]
    assert trained.normalizer is None


def test_the_same_texts_give_the_same_file_in_another_process() -> None:
    code = "import json, sys; from tapestry.data.tokenizer import train_tokenizer\n"
    code += "t = train_tokenizer(iter(json.loads(sys.argv[1])), vocabulary_size=400)\n"
    code += "sys.stdout.buffer.write(t.to_str().encode())"
    texts = [text.replace("\x00", "") for text in FIVE_SCRIPTS]
    again = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    here = train_tokenizer(texts, vocabulary_size=400)
    assert again.stdout == here.to_str().encode()
    assert here.to_str() == train_tokenizer(texts, vocabulary_size=400).to_str()


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="259 has no room for the 260 tokens"):
        train_tokenizer(FIVE_SCRIPTS, vocabulary_size=259)


def test_an_error_of_the_texts_comes_through_as_it_is() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise ConfigError("a.txt: not UTF-8")

    with pytest.raises(ConfigError, match=r"a\.txt: not UTF-8"):
        train_tokenizer(texts(), vocabulary_size=300)


def test_transformers_encodes_alike_without_our_package(tmp_path: Path, trained: Tokenizer) -> None:
    texts = [text.replace("\x00", "") for text in FIVE_SCRIPTS]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _ENCODE_ELSEWHERE,
            saved(tmp_path / "m", trained),
            json.dumps(texts),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    elsewhere = json.loads(done.stdout)
    assert elsewhere == {
        "ids": [trained.encode(text).ids for text in texts],
        "texts": texts,
        "eos": 0,
        "pad": 1,
        "size": 400,
        "longest": 2048,
        "ours": False,
    }


def test_a_saved_tokenizer_is_read_from_its_file_or_folder(
    tmp_path: Path, trained: Tokenizer
) -> None:
    folder = saved(tmp_path / "model", trained)
    for path in (folder, folder / "tokenizer.json"):
        assert load_tokenizer(path).to_str() == trained.to_str()


def test_a_path_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", tmp_path / "gone.json"):
        with pytest.raises(ConfigError, match=f"{path}: no tokenizer.json here"):
            load_tokenizer(path)
    for content in (b"", b"{}", b"\xff", b'{"model": {"type": "?"}}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"tokenizer\.json: not a tokenizer") as caught:
            load_tokenizer(tmp_path)
        assert len(str(caught.value).splitlines()) == 1


def test_the_end_of_text_is_what_the_configuration_says_or_a_known_name() -> None:
    tokenizer = foreign("<s>", "</s>", "<|im_end|>")
    end, turn = tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|im_end|>")
    assert end_of_text_id(tokenizer, None) == end
    assert end_of_text_id(tokenizer, {}) == end
    assert end_of_text_id(tokenizer, {"eos_token": None}) == end
    assert end_of_text_id(tokenizer, {"eos_token": "<|im_end|>"}) == turn
    assert end_of_text_id(tokenizer, {"eos_token": {"content": "<|im_end|>"}}) == turn
    with pytest.raises(ConfigError, match="no token that ends a text: name it as eos_token"):
        end_of_text_id(foreign("<s>"), None)


def test_the_files_of_a_foreign_tokenizer_name_tokens_that_it_has() -> None:
    def special(tokenizer: Tokenizer) -> tuple[str, str]:
        files = tokenizer_files(tokenizer, model_max_length=64)
        config = json.loads(files["tokenizer_config.json"])
        return config["eos_token"], config["pad_token"]

    assert special(byte_tokenizer()) == ("<|endoftext|>", "<|padding|>")
    assert special(foreign("</s>", "<pad>")) == ("</s>", "<pad>")
    assert special(foreign("<eos>")) == ("<eos>", "<eos>")
