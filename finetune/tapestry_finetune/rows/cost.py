"""What a language costs with a tokenizer: tokens for as much meaning, against English.

Tokens per byte or per letter do not compare languages: a sentence has twice the bytes in Greek that
it has in English, and a third of the letters in Chinese. What is nearly equal is how much there is
to say, and a general compressor sees about that: bzip2 makes of the same text in two languages
files of about the same size, whatever their scripts. So the text is taken that compresses to as
many bytes as an English passage, and the tokens of both are compared.
"""

import bz2
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_ENGLISH = Path(__file__).with_name("english.txt")
_SAMPLE_CHARACTERS = 60_000
_MOST_OF_ONE = 2_000
_FEWEST_COMPRESSED_BYTES = 700
"""Of less text no more than a guess could be said."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Cost:
    """How a tokenizer cuts the text of one language."""

    language: str
    bytes_per_token: float
    letters_per_token: float
    times_english: float | None
    """Tokens for as much meaning, English being 1; None: too little text to tell."""


def english() -> str:
    """Return the passage that costs 1."""
    return _ENGLISH.read_text(encoding="utf-8")


def cost_of(texts: Iterable[str], language: str, count_tokens: CountTokens) -> Cost:
    """Measure what texts in one language cost."""
    text = _sample(texts)
    size = len(text.encode())
    passage = english()
    goal = min(_compressed(text), _compressed(passage))
    times = None
    if goal >= _FEWEST_COMPRESSED_BYTES:
        ours, theirs = _until(text, goal), _until(passage, goal)
        times = count_tokens(ours) / count_tokens(theirs)
    tokens = max(1, count_tokens(text))
    return Cost(language, size / tokens, len(text) / tokens, times)


def _sample(texts: Iterable[str]) -> str:
    """Return different texts, so many that a sample is full."""
    taken: dict[str, None] = {}
    room = _SAMPLE_CHARACTERS
    for text in texts:
        if room <= 0:
            break
        part = text[: min(room, _MOST_OF_ONE)]
        if part not in taken:
            taken[part] = None
            room -= len(part)
    return "\n".join(taken)


def _compressed(text: str) -> int:
    return len(bz2.compress(text.encode()))


def _until(text: str, goal: int) -> str:
    """Return the beginning of `text` that compresses to about `goal` bytes."""
    low, high = 0, len(text)
    while high - low > 16:
        middle = (low + high) // 2
        if _compressed(text[:middle]) < goal:
            low = middle
        else:
            high = middle
    return text[:high]
