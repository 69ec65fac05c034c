"""Tell languages apart by their letters in threes, from the texts at hand.

For languages that no identifier knows, and lines too short for one. It knows only the languages
that it was shown, and says nothing where two of them fit almost alike.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

_MOST_CHARACTERS = 200_000
"""Of a language, to learn from."""
_FEWEST_CHARACTERS = 2_000
_LEAST_MARGIN = 0.25
"""Nats a letter between the likeliest language and the next."""


class Grams:
    """A naive Bayes classifier over character trigrams."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Learn from the texts of each language; one with hardly any is left out."""
        self._counts: dict[str, Counter[str]] = {}
        for language, some in texts.items():
            text = "\n".join(some)[:_MOST_CHARACTERS]
            if len(text) >= _FEWEST_CHARACTERS:
                self._counts[language] = Counter(_threes(text))
        self._kinds = len({three for one in self._counts.values() for three in one}) + 1

    def identify(self, line: str) -> str:
        """Return the language of a line; "" where fewer than two are known, or it is unsure."""
        threes = _threes(line)
        if len(self._counts) < 2 or not threes:
            return ""
        scores = {
            language: sum(
                math.log((counts[three] + 0.5) / (counts.total() + 0.5 * self._kinds))
                for three in threes
            )
            / len(threes)
            for language, counts in self._counts.items()
        }
        best, second = sorted(scores, key=lambda one: scores[one], reverse=True)[:2]
        return best if scores[best] - scores[second] >= _LEAST_MARGIN else ""


def _threes(text: str) -> list[str]:
    plain = f" {' '.join(text.casefold().split())} "
    return [plain[at : at + 3] for at in range(len(plain) - 2)]
