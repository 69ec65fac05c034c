"""Tokens for a script that the base's tokenizer hardly knows, learnt from a community's own text.

Merges are appended to the base's: what it merges, it merges first and as before. Only bytes from
0x80 on, and a leading space, are merged, and every merge that would change one of the federation's
open texts in another language is taken out again: no other language is read otherwise.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import heapq
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from tapestry.checkpoints.folder import building
from tapestry.data.chat import TEMPLATE_FILE
from tapestry.data.language import can_identify, identify
from tapestry.data.tokenizer import load_tokenizer
from tapestry.errors import ConfigError
from tapestry.objectives.loading import load_text_tokenizer
from tapestry_finetune.adapting import embeddings_of
from tapestry_finetune.base import Base, tokenizer_with
from tapestry_finetune.evaluation.bits import bits_per_byte
from tapestry_finetune.gathering import Gathered
from tapestry_finetune.measuring import first_bytes
from tapestry_finetune.recipe import Recipe
from tapestry_finetune.voices import Voice

_FEWEST_SEEN = 5
_BYTES_A_TOKEN = 500
_MOST_TOKENS = 8192
_MOST_TEXT = 8_000_000
_MEASURED_BYTES = 8_192
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")

Merge = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """New tokens, with the rows that they begin with."""

    folder: Path
    first: int
    """Id of the first new token."""
    rows: dict[str, torch.Tensor]
    """[N, W] float32 by layer: `embedding`, and `head` if it is not tied."""
    measured: dict[str, float]
    """Held-out bits per byte before any training, by what was tried; `base`: without new tokens."""

    def __len__(self) -> int:
        return len(self.rows["embedding"])


def make_extension(
    base: Base, gathered: Gathered, recipe: Recipe, run: Path, say: Callable[[str], None]
) -> Extension | None:
    """Learn tokens, choose how they begin, and keep both in the run's folder.

    Returns:
        None if the text gives no token that is worth it.

    Raises:
        ConfigError: The base's tokenizer is of a kind that cannot be extended so.
    """
    folder = run / "vocabulary"
    if not folder.exists():
        tokenizer = load_tokenizer(base.folder)
        texts = [row.text for row in gathered.text]
        size = sum(len(text.encode()) for text in texts)
        most = recipe.vocab.tokens or min(_MOST_TOKENS, max(64, size // _BYTES_A_TOKEN))
        merges = learn_merges(tokenizer, texts, most=most)
        others = _of_other_languages(base.replay(), recipe.model.languages)
        merges, extended = keep_others(tokenizer, merges, others, _first_new(base))
        with building(folder) as made:
            _write(made, base, extended, merges)
            if merges:
                _choose_rows(made, base, gathered, merges)
    extension = _read(folder)
    if extension is None:
        say("vocab: no sequence of letters is frequent enough; the base's tokens stay")
        return None
    best = min((n for n in extension.measured if n != "base"), key=extension.measured.__getitem__)
    tried = ", ".join(f"{name} {bits:.2f}" for name, bits in extension.measured.items())
    say(f"vocab: {len(extension):,} new tokens, begun by {best} (held-out bits per byte: {tried})")
    return extension


def learn_merges(tokenizer: Tokenizer, texts: Iterable[str], *, most: int) -> list[Merge]:
    """Return merges that shorten `texts`, the most frequent first (Sennrich et al., 2016).

    Args:
        tokenizer: Byte-level BPE, whose own merges come before.
        texts: To learn from.
        most: Of merges.

    Raises:
        ConfigError: The tokenizer is of another kind.
    """
    table = json.loads(tokenizer.to_str())
    if table["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(table["decoder"]):
        raise ConfigError(
            "the base's tokenizer is not a byte-level BPE: its vocabulary cannot be extended; take "
            "the stage vocab out of training.stages"
        )
    counts: Counter[str] = Counter()
    read = 0
    for text in texts:
        read += len(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
        if read > _MOST_TEXT:
            break
    words = [
        ([token.value for token in tokenizer.model.tokenize(word)], count)
        for word, count in sorted(counts.items())
        if any(_is_merged(letter) for letter in word)
    ]
    return _merged(words, set(table["model"]["vocab"]), most)


def _is_merged(letter: str) -> bool:
    return letter in _LETTERS


def _byte_letters() -> dict[int, str]:
    """Return the letters that byte-level tokenizers write bytes as (Radford et al., 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


_LETTERS = frozenset(
    letter for byte, letter in _byte_letters().items() if byte >= 0x80 or byte == 0x20
)


def _merged(words: list[tuple[list[str], int]], known: set[str], most: int) -> list[Merge]:
    pairs: Counter[Merge] = Counter()
    where: dict[Merge, set[int]] = {}
    for index, (tokens, count) in enumerate(words):
        for pair in pairwise(tokens):
            pairs[pair] += count
            where.setdefault(pair, set()).add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[Merge] = []
    while heap and len(merges) < most:
        negative, pair = heapq.heappop(heap)
        if pairs[pair] != -negative:
            if pairs[pair] >= _FEWEST_SEEN:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -negative < _FEWEST_SEEN:
            break
        whole = "".join(pair)
        if whole in known or not all(_is_merged(letter) for letter in whole):
            pairs[pair] = 0
            continue
        known.add(whole)
        merges.append(pair)
        for changed in _apply(words, pair, whole, pairs, where):
            heapq.heappush(heap, (-pairs[changed], changed))
    return merges


def _apply(
    words: list[tuple[list[str], int]],
    pair: Merge,
    whole: str,
    pairs: Counter[Merge],
    where: dict[Merge, set[int]],
) -> set[Merge]:
    changed: set[Merge] = set()
    for index in sorted(where.pop(pair, ())):
        tokens, count = words[index]
        for before in pairwise(tokens):
            pairs[before] -= count
        made: list[str] = []
        for token in tokens:
            if made and (made[-1], token) == pair:
                made[-1] = whole
            else:
                made.append(token)
        words[index] = (made, count)
        for after in pairwise(made):
            pairs[after] += count
            where.setdefault(after, set()).add(index)
            changed.add(after)
    pairs[pair] = 0
    return changed


def keep_others(
    tokenizer: Tokenizer, merges: list[Merge], others: Sequence[str], first: int
) -> tuple[list[Merge], Tokenizer]:
    """Take out merges until none of `others` is tokenized otherwise than before.

    Args:
        tokenizer: The base's.
        merges: In order.
        others: Texts in other languages.
        first: Id of the first new token.

    Returns:
        The merges that are left, and the tokenizer with them.
    """
    before = [tokenizer.encode(text, add_special_tokens=False).ids for text in others]
    while True:
        extended = _with_merges(tokenizer, merges, first)
        used: set[str] = set()
        for text, ids in zip(others, before, strict=True):
            now = extended.encode(text, add_special_tokens=False).ids
            if now != ids:
                used.update(str(extended.id_to_token(token)) for token in now if token >= first)
        if not used:
            return merges, extended
        merges = _without(merges, used)


def _without(merges: list[Merge], tokens: set[str]) -> list[Merge]:
    """Return merges without those that make `tokens`, and without what is made of those."""
    gone = set(tokens)
    kept: list[Merge] = []
    for left, right in merges:
        if left + right in gone or left in gone or right in gone:
            gone.add(left + right)
        else:
            kept.append((left, right))
    return kept


def _with_merges(tokenizer: Tokenizer, merges: Sequence[Merge], first: int) -> Tokenizer:
    table = json.loads(tokenizer.to_str())
    model = table["model"]
    for number, (left, right) in enumerate(merges):
        model["vocab"][left + right] = first + number
        model["merges"].append([left, right])
    made: Tokenizer = Tokenizer.from_str(json.dumps(table))
    return made


def _of_other_languages(documents: Sequence[str], languages: Sequence[str]) -> list[str]:
    own = {language for language in languages if can_identify(language)}
    return [document for document in documents if identify(document) not in own]


def _first_new(base: Base) -> int:
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"])


def _write(folder: Path, base: Base, extended: Tokenizer, merges: Sequence[Merge]) -> None:
    extended.save(str(folder / "tokenizer.json"))
    for name in _CONFIGS:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    (folder / TEMPLATE_FILE).write_text(base.template(), encoding="utf-8")
    table = {"first": _first_new(base), "merges": len(merges), "measured": {}}
    (folder / "extension.json").write_text(json.dumps(table) + "\n", encoding="utf-8")


def _read(folder: Path) -> Extension | None:
    table = json.loads((folder / "extension.json").read_text(encoding="utf-8"))
    if not table["merges"]:
        return None
    return Extension(
        folder=folder,
        first=table["first"],
        rows=load_file(folder / "rows.safetensors"),
        measured=table["measured"],
    )


def extended_tokenizer(base: Base, extension: Extension) -> Any:  # noqa: ANN401
    """Return the tokenizer with the new tokens, as transformers wraps it."""
    return tokenizer_with(extension.folder, base.template())


def extend_model(module: Any, extension: Extension) -> None:  # noqa: ANN401
    """Give a model the rows of the new tokens, in place."""
    module.resize_token_embeddings(extension.first + len(extension), mean_resizing=False)
    _set_rows(module, extension.first, extension.rows)


def _set_rows(module: Any, first: int, rows: dict[str, torch.Tensor]) -> None:  # noqa: ANN401
    layers = embeddings_of(module)
    with torch.no_grad():
        for name, layer in zip(("embedding", "head"), layers, strict=False):
            layer.weight[first:] = rows[name].to(layer.weight)


def _choose_rows(folder: Path, base: Base, gathered: Gathered, merges: Sequence[Merge]) -> None:
    """Measure the cheap ways to begin the new rows on held-out text, and keep the best."""
    first = _first_new(base)
    texts = first_bytes(gathered.held_out_text() or [gathered.text[0].text], _MEASURED_BYTES)
    module = base.load("cpu")
    plain, extended = base.tokenizer(), load_text_tokenizer(folder)
    measured = {"base": bits_per_byte(Voice(module=module, tokenizer=plain), texts)}
    tried = {
        name: {
            layer: _rows(name, weight, plain, merges)
            for layer, weight in zip(
                ("embedding", "head"),
                [layer.weight.detach().clone() for layer in embeddings_of(module)],
                strict=False,
            )
        }
        for name in ("mean of pieces", "random", "zero")
    }
    module.resize_token_embeddings(first + len(merges), mean_resizing=False)
    for name, rows in tried.items():
        _set_rows(module, first, rows)
        measured[name] = bits_per_byte(Voice(module=module, tokenizer=extended), texts)
    best = min(tried, key=lambda name: measured[name])
    (folder / "rows.safetensors").write_bytes(save(tried[best]))
    table = {"first": first, "merges": len(merges), "measured": measured}
    (folder / "extension.json").write_text(json.dumps(table) + "\n", encoding="utf-8")


def _rows(
    name: str,
    weight: torch.Tensor,
    tokenizer: Any,  # noqa: ANN401
    merges: Sequence[Merge],
) -> torch.Tensor:
    shape = (len(merges), weight.shape[1])
    if name == "zero":
        return torch.zeros(shape)
    if name == "random":
        generator = torch.Generator().manual_seed(0)
        return weight.mean(0) + weight.std(0) * torch.randn(shape, generator=generator)
    known = tokenizer.backend_tokenizer
    made: dict[str, torch.Tensor] = {}
    rows = torch.empty(shape)
    for number, (left, right) in enumerate(merges):
        parts = [
            made[part] if part in made else weight[known.token_to_id(part)]
            for part in (left, right)
        ]
        sizes = [len(left), len(right)]
        rows[number] = (parts[0] * sizes[0] + parts[1] * sizes[1]) / sum(sizes)
        made[left + right] = rows[number]
    return rows
