"""What a model's answers show: their language, refusals in both directions, repeated text."""

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

from tapestry.data.language import can_identify, identify, kin_of
from tapestry_finetune.evaluation.grams import Grams

LEAK_LETTERS = 40
"""So many letters in a row, seven or eight words, that stand in a protected text are repeated."""
LEAK_SIGNS = 16
"""The same for scripts of which a sign is a syllable or a word."""

_REFUSED_WITHIN = 300
"""Characters: a refusal stands at the beginning of an answer."""
_FEWEST_LETTERS = 8
"""Of a line, to tell anything about it."""
_LEAST_OWN_SCRIPT = 0.5
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc`", "'"))
_SIGN_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "YI")


def known_refusals() -> dict[str, list[str]]:
    """Return how assistants refuse, by language."""
    table = files("tapestry_finetune.evaluation").joinpath("refusals.toml")
    return tomllib.loads(table.read_text(encoding="utf-8"))


def is_refusal(said: str, phrases: Sequence[str]) -> bool:
    """Whether an answer begins with one of the ways to refuse."""
    begins = _folded(said)[:_REFUSED_WITHIN]
    return any(_folded(phrase) in begins for phrase in phrases if phrase.strip())


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return " ".join(plain.split())


def lines_in_language(
    said: str, language: str, *, scripts: frozenset[str], grams: Grams
) -> tuple[int, int]:
    """Return how many lines of an answer are in `language`, and of how many that could be told.

    A line is wrong in another script, or when it is identified as another language. One that is
    short or unsure says nothing. An answer without a letter is one wrong line.

    Args:
        said: The answer.
        language: Its tag.
        scripts: In which the language is written; none: unknown.
        grams: What else tells languages apart, by the texts at hand.
    """
    right = told = 0
    lines = [line for line in said.splitlines() if any(one.isalpha() for one in line)]
    if not lines:
        return 0, 1
    for line in lines:
        verdict = _is_in(line, language, scripts, grams)
        right += verdict is True
        told += verdict is not None
    return right, told


def _is_in(line: str, language: str, scripts: frozenset[str], grams: Grams) -> bool | None:
    counts = scripts_of(line)
    if counts.total() < _FEWEST_LETTERS:
        return None
    own = sum(counts[script] for script in scripts)
    if scripts and own < _LEAST_OWN_SCRIPT * counts.total():
        return False
    found = identify(line) if can_identify(language) else ""
    found = found or grams.identify(line)
    return found in kin_of(language) | {language} if found else None


def scripts_of(text: str) -> Counter[str]:
    """Count the letters of each script in a text."""
    return Counter(_script(letter) for letter in text if letter.isalpha())


def main_scripts(texts: Sequence[str]) -> frozenset[str]:
    """Return the scripts that texts are written in: those with a tenth of the letters or more."""
    counts = sum((scripts_of(text[:10_000]) for text in texts[:100]), Counter[str]())
    return frozenset(name for name, count in counts.items() if count * 10 >= counts.total())


def _script(letter: str) -> str:
    """Return the first word of a letter's name, which is that of its script."""
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]


class Protected:
    """Texts that no output may repeat word for word."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Remember every run of letters of the protected texts."""
        self._runs: dict[int, set[int]] = {LEAK_LETTERS: set(), LEAK_SIGNS: set()}
        for text in texts:
            letters = _letters(text)
            length = _run_length(letters)
            starts = range(len(letters) - length + 1)
            self._runs[length].update(hash(letters[at : at + length]) for at in starts)

    def is_repeated_in(self, said: str) -> bool:
        """Whether an output holds a run of a protected text."""
        letters = _letters(said)
        return any(
            hash(letters[at : at + length]) in runs
            for length, runs in self._runs.items()
            if runs
            for at in range(len(letters) - length + 1)
        )


def _letters(text: str) -> str:
    """Return a text without case, blanks and marks between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in folded if unicodedata.category(one)[0] in "LMN")


def _run_length(letters: str) -> int:
    signs = sum(_script(one) in _SIGN_SCRIPTS for one in letters[:2000])
    return LEAK_SIGNS if 2 * signs > len(letters[:2000]) else LEAK_LETTERS


def opening_of(text: str) -> str:
    """Return the first third of a text, at a word's end: what a model is given to go on from."""
    cut = text[: max(1, min(len(text) // 3, 200))]
    head, blank, _rest = cut.rpartition(" ")
    return head if blank else cut


def phrases_for(own: Sequence[str], known: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return one's own ways to refuse and those of all languages that are known."""
    table = known_refusals() if known is None else known
    return [*own, *(phrase for phrases in table.values() for phrase in phrases)]
