"""Whether an expression matches nothing, or as good as everything: a slip that shows late."""

import itertools
from collections import Counter
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


def too_wide(nodes: Sequence[Node], texts: Sequence[str]) -> dict[int, str]:
    """Return the numbers of the expressions that match too much, and how, in words.

    Args:
        nodes: The expressions.
        texts: Of the charter's cases.
    """
    automaton = Automaton(nodes)
    found = Counter(number for text in texts for number in automaton.all_in(fold(text)))
    wide = {
        number: f"it is found in {count} of the {len(texts)} texts of the cases: narrow it"
        for number, count in found.items()
        if len(texts) >= _FEWEST_TEXTS and 2 * count > len(texts)
    }
    single = Counter(number for letter in _LETTERS for number in automaton.all_in(letter))
    everything = "a single letter is enough for it: it would stop nearly every text"
    return wide | {n: everything for n, count in single.items() if 2 * count > len(_LETTERS)}


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
