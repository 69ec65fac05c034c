"""Whether an expression matches nothing, or as good as everything: a slip that shows late."""

import itertools
from collections.abc import Iterator, Sequence

from tapestry_finetune.charter.automaton import Automaton
from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.patterns import Either, InOrder, Letter, Node, Repeated

_TRIED = 64
_USUAL = "a1- \u00e9\u0627\u4e00\u0e01"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FEWEST_TEXTS = 6


def can_match(node: Node) -> bool:
    """Whether one of the texts that an expression seems to ask for is found by it."""
    automaton = Automaton([node])
    return any(
        automaton.first_in(sample) is not None
        for sample in itertools.islice(_samples(node), _TRIED)
    )


def too_wide(node: Node, texts: Sequence[str]) -> str:
    """Return how an expression matches too much, in words; "" if it does not.

    Args:
        node: The expression.
        texts: Of the charter's cases.
    """
    automaton = Automaton([node])
    single = sum(automaton.first_in(letter) is not None for letter in _LETTERS)
    if 2 * single > len(_LETTERS):
        return "a single letter is enough for it: it would stop nearly every text"
    found = sum(automaton.first_in(fold(text)) is not None for text in texts)
    if len(texts) >= _FEWEST_TEXTS and 2 * found > len(texts):
        return f"it is found in {found} of the {len(texts)} texts of the cases: narrow it"
    return ""


def _samples(node: Node) -> Iterator[str]:
    """Yield texts that `node` seems to match, the shortest variants first."""
    match node:
        case Letter():
            yield from _letters(node)
        case Either(choices):
            for several in itertools.zip_longest(*map(_samples, choices)):
                yield from (one for one in several if one is not None)
        case InOrder(parts):
            few = [list(itertools.islice(_samples(part), 4)) for part in parts]
            yield from map("".join, itertools.product(*few))
        case Repeated(inner, least, most):
            counts = [least] if most == least else [least, least + 1]
            for count in counts:
                for sample in itertools.islice(_samples(inner), 3):
                    yield sample * count


def _letters(letter: Letter) -> Iterator[str]:
    if letter.is_edge:
        yield ""
        return
    candidates = [
        letter.only,
        *sorted(letter.characters)[:4],
        *(first for first, _last in letter.ranges),
        *_USUAL,
    ]
    yield from (one for one in candidates if one and letter.matches(one))
