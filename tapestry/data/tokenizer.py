"""Byte-level tokenizers: trained on open text, or given as a `tokenizer.json`.

The pre-tokenizer is that of the qwen2 family, one of those that llama.cpp knows; there is no
normalizer, so that every text comes back to the byte.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tapestry.data.chat import CHATML, TEMPLATE_FILE, TURN_END, TURN_START, has_turns
from tapestry.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, TURN_START, TURN_END)
BYTES_ONLY_VOCABULARY = 256 + len(SPECIAL_TOKENS)

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_END_OF_TEXT = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
_KNOWN_PADDING = (PADDING, "<pad>", "[PAD]", "<|pad|>")


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Args:
        texts: To learn merges from.
        vocabulary_size: Upper bound, with 256 bytes and four special tokens.

    Raises:
        ConfigError: The vocabulary is too small for the bytes alone.
    """
    if vocabulary_size < BYTES_ONLY_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocabulary_size} has no room for the {BYTES_ONLY_VOCABULARY} tokens "
            "of a byte-level tokenizer: raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer without merges: each byte a token."""
    return train_tokenizer([], vocabulary_size=BYTES_ONLY_VOCABULARY)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a folder.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"{path}: no tokenizer.json here; name one, or a folder that has it "
            "(tokenizers in other forms are not read)"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{file}: not a tokenizer: {cause}; give a tokenizer.json as `tokenizers` saves it"
        ) from error


def tokenizer_files(tokenizer: Tokenizer, *, model_max_length: int) -> dict[str, bytes]:
    """Return the files that `transformers.AutoTokenizer` needs, by name; the template of chats too.

    Both special tokens named there are in the vocabulary: `transformers` would append a missing
    one, with an id that the model has no embedding for.

    Raises:
        ConfigError: The tokenizer has no token that ends a text.
    """
    end_of_text = tokenizer.id_to_token(end_of_text_id(tokenizer, None))
    padding = next(
        (name for name in _KNOWN_PADDING if tokenizer.token_to_id(name) is not None), end_of_text
    )
    config = {
        "clean_up_tokenization_spaces": False,
        "eos_token": end_of_text,
        "model_max_length": model_max_length,
        "pad_token": padding,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode() + b"\n",
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
    }
    if has_turns(tokenizer):
        files[TEMPLATE_FILE] = CHATML.encode()
    return files


def end_of_text_id(tokenizer: Tokenizer, config: Mapping[str, Any] | None) -> int:
    """Return the id of the token that ends a document.

    Args:
        tokenizer: Any.
        config: Content of its `tokenizer_config.json`, if there is one.

    Raises:
        ConfigError: Neither the configuration nor a known name tells.
    """
    named = (config or {}).get("eos_token")
    if isinstance(named, Mapping):
        named = named.get("content")
    names = ([named] if isinstance(named, str) else []) + list(_KNOWN_END_OF_TEXT)
    for name in names:
        found: int | None = tokenizer.token_to_id(name)
        if found is not None:
            return found
    raise ConfigError(
        "the tokenizer has no token that ends a text: name it as eos_token in tokenizer_config.json"
    )
