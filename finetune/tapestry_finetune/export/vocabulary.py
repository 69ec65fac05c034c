"""A byte-level BPE tokenizer in GGUF.

llama.cpp cuts text with regular expressions of its own, which it chooses by name. A tokenizer is
recognised by comparing how it cuts with what stands behind those names; one that cuts in another
way is refused, since its model would read other tokens in llama.cpp than it was trained on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from tapestry.data.chat import TURN_END, without_markers
from tapestry.errors import ConfigError

_Step = tuple[str, str]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES: _Step = ("bytes", "")
_WORDS_AND_BYTES: _Step = ("bytes", "with the expression of GPT-2")

_KNOWN: dict[tuple[_Step, ...], str] = {
    (("split", _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL), _BYTES): "qwen2",
    (
        ("split", _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL),
        _BYTES,
    ): "llama-bpe",
    (_WORDS_AND_BYTES,): "gpt-2",
    (("digits", "one by one"), _WORDS_AND_BYTES): "smollm",
}
_IGNORES_MERGES = frozenset({"llama-bpe"})
"""Where llama.cpp takes a whole word that is a token before it asks the merges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What GGUF says of a tokenizer."""

    pre: str
    """llama.cpp's name of how it cuts text."""
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    begin: int
    end: int
    end_of_turn: int | None
    padding: int | None
    adds_begin: bool
    template: str
    remarks: list[str]
    """What llama.cpp does otherwise, in words."""

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write it."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.begin)
        writer.add_eos_token_id(self.end)
        if self.end_of_turn is not None:
            writer.add_eot_token_id(self.end_of_turn)
        if self.padding is not None:
            writer.add_pad_token_id(self.padding)
        writer.add_add_bos_token(self.adds_begin)
        writer.add_add_eos_token(value=False)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary_of(tokenizer: Any, *, rows: int) -> Vocabulary:  # noqa: ANN401
    """Return what GGUF says of a transformers tokenizer.

    Args:
        tokenizer: With its chat template.
        rows: Of the embedding; tokens that the tokenizer lacks are marked as unused.

    Raises:
        ConfigError: llama.cpp would cut text otherwise; with what it does not know.
    """
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _recognised(table)
    words = tokenizer.get_vocab()
    if max(words.values()) >= rows:
        raise ConfigError(
            f"the tokenizer has {max(words.values()) + 1:,} tokens, the model embeds {rows:,}"
        )
    tokens, kinds = _tokens(words, table["added_tokens"], rows)
    end = _end_of_text(tokenizer)
    begin = tokenizer.bos_token_id
    composes = table["normalizer"] is not None
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        merges=_merges(table["model"]["merges"], tokens[end]),
        begin=end if begin is None else begin,
        end=end,
        end_of_turn=words.get(TURN_END),
        padding=tokenizer.pad_token_id,
        adds_begin=_adds_begin(tokenizer),
        template=without_markers(tokenizer.chat_template or ""),
        remarks=["llama.cpp does not compose letters (NFC) as the tokenizer does"] * composes,
    )


def _tokens(
    words: Mapping[str, int], added: Sequence[dict[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    """Return the token of every row of the embedding, and of what kind it is."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = [int(gguf.TokenType.UNUSED)] * rows
    for word, index in words.items():
        tokens[index], kinds[index] = word, int(gguf.TokenType.NORMAL)
    for entry in added:
        _require_plain(entry)
        kind = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
        kinds[entry["id"]] = int(kind)
    return tokens, kinds


def _recognised(table: dict[str, Any]) -> str:
    """Return llama.cpp's name for how the tokenizer cuts text."""
    model = table["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ConfigError(
            f"GGUF is written for byte-level BPE, this tokenizer is {model['type']}"
            f"{' with byte fallback' if model.get('byte_fallback') else ''}: export as `merged`"
        )
    normalizer = table["normalizer"]
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise ConfigError(
            f"llama.cpp has no normalizer like this tokenizer's ({normalizer['type']}): "
            "export as `merged`"
        )
    steps = tuple(map(_step, _flat(table["pre_tokenizer"])))
    pre = _KNOWN.get(steps)
    if pre is None:
        shown = "; ".join(f"{name} {what}".strip() for name, what in steps) or "not at all"
        raise ConfigError(
            f"llama.cpp does not know how this tokenizer cuts text ({shown[:300]}); it would read "
            f"other tokens than the model was trained on. Known: {', '.join(_KNOWN.values())}. "
            "Export as `merged`"
        )
    if bool(model.get("ignore_merges")) != (pre in _IGNORES_MERGES):
        raise ConfigError(
            f"the tokenizer cuts text like {pre}, but "
            f"{'takes' if model.get('ignore_merges') else 'does not take'} whole words before "
            "merges (ignore_merges), and llama.cpp cannot be told so: export as `merged`"
        )
    return pre


def _flat(table: dict[str, Any] | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    if table["type"] != "Sequence":
        return [table]
    return [step for inner in table["pretokenizers"] for step in _flat(inner)]


def _step(table: dict[str, Any]) -> _Step:
    """Return one step of cutting, in a form that can be compared."""
    kind = table["type"]
    if kind == "Split" and (table["behavior"], table["invert"]) == ("Isolated", False):
        pattern = table["pattern"]
        return ("split", pattern["Regex"]) if "Regex" in pattern else ("split at", str(pattern))
    if kind == "Digits" and table["individual_digits"]:
        return ("digits", "one by one")
    if kind == "ByteLevel" and not table["add_prefix_space"]:
        return _WORDS_AND_BYTES if table["use_regex"] else _BYTES
    return (kind, json.dumps({k: v for k, v in table.items() if k != "type"}, sort_keys=True))


def _require_plain(entry: dict[str, Any]) -> None:
    for flag in ("lstrip", "rstrip", "single_word"):
        if entry[flag]:
            raise ConfigError(
                f"the added token {entry['content']!r} is matched with {flag}, which GGUF cannot "
                "say: export as `merged`"
            )


def _merges(merges: Sequence[str | Sequence[str]], end_of_text: str) -> list[str]:
    """Return the merges as llama.cpp reads them.

    It refuses a vocabulary without any: one whose tokens are the bytes gets one that no text meets.
    """
    said = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return said or [f"{end_of_text} {end_of_text}"]


def _end_of_text(tokenizer: Any) -> int:  # noqa: ANN401
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer names no eos_token: llama.cpp would not know where to end")
    return int(tokenizer.eos_token_id)


def _adds_begin(tokenizer: Any) -> bool:  # noqa: ANN401
    """Return whether a text begins with a token of its own."""
    around = [int(token) for token in tokenizer("")["input_ids"]]
    if around and around != [tokenizer.bos_token_id]:
        raise ConfigError(
            f"the tokenizer puts the tokens {around} around a text; GGUF can only say that one "
            "begins it: export as `merged`"
        )
    return bool(around)
