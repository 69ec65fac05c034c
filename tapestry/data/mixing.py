"""How often each language and source is drawn, the same on every run.

UniMax (arXiv 2304.09151) spreads a budget evenly over the languages, and gives what a small one
cannot take without being repeated more than `max_epochs` times to the others.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from tapestry.data.packing import Part
from tapestry.data.sources import CorpusSpec

_log = logging.getLogger(__name__)

_SLOTS = 4096


@dataclass(frozen=True, slots=True)
class Stream:
    """A piece of the training tokens that sequences are drawn from."""

    name: str
    start: int
    tokens: int
    share: float
    """Of the sequences."""


def unimax(tokens: Mapping[str, int], *, budget_tokens: int, max_epochs: float) -> dict[str, float]:
    """Return how many tokens of each language to train on.

    Args:
        tokens: How many there are of each.
        budget_tokens: Of all languages together.
        max_epochs: Most repetitions of a language.

    Returns:
        Tokens by language; together less than the budget if all are at their bound.
    """
    left = float(budget_tokens)
    given: dict[str, float] = {}
    ordered = sorted(tokens, key=lambda one: (tokens[one], one))
    for number, language in enumerate(ordered):
        even = left / (len(ordered) - number)
        given[language] = min(even, tokens[language] * max_epochs)
        left -= given[language]
    return given


def streams_of(
    parts: Sequence[Part], spec: CorpusSpec, *, sequence_tokens: int
) -> tuple[Stream, ...]:
    """Return what batches are drawn from, and how often.

    Pieces that are drawn as often as their size says are one stream: then no order of files shows,
    and small sources are no remainder. What is too short for one sequence is not drawn.
    """
    weights = {source.name: source.weight for source in spec.sources}
    size = sum(part.tokens for part in parts)
    by_language: dict[str, list[Part]] = {
        language: list(group) for language, group in groupby(parts, key=lambda one: one.language)
    }
    tokens = {name: sum(part.tokens for part in group) for name, group in by_language.items()}
    is_even = spec.mixing.languages == "unimax" and len(tokens) > 1
    if not is_even and len({weights.get(part.source, 1.0) for part in parts}) <= 1:
        return (Stream("all", 0, size, 1.0),)
    given: Mapping[str, float] = tokens
    if is_even:
        given = unimax(
            tokens,
            budget_tokens=spec.mixing.budget_tokens or size,
            max_epochs=spec.mixing.max_epochs,
        )
    streams = [
        stream
        for language, group in by_language.items()
        for stream in _of_language(language, group, weights, given[language])
    ]
    long_enough = [one for one in streams if one.tokens > sequence_tokens]
    for short in (one for one in streams if one.tokens <= sequence_tokens):
        _log.warning(
            "corpus: %s has %d tokens, a sequence needs %d: nothing of it is drawn",
            short.name,
            short.tokens,
            sequence_tokens + 1,
        )
    whole = sum(one.share for one in long_enough)
    if not long_enough:
        return (Stream("all", 0, size, 1.0),)
    return tuple(Stream(s.name, s.start, s.tokens, s.share / whole) for s in long_enough)


def _of_language(
    language: str, parts: Sequence[Part], weights: Mapping[str, float], given: float
) -> list[Stream]:
    """Return the streams of a language: one, unless its sources have different weights."""
    size = sum(part.tokens for part in parts)
    if len({weights.get(part.source, 1.0) for part in parts}) <= 1:
        return [Stream(language, parts[0].start, size, given)]
    weighted = {part: part.tokens * weights.get(part.source, 1.0) for part in parts}
    whole = sum(weighted.values())
    return [
        Stream(f"{part.source} ({language})", part.start, part.tokens, given * amount / whole)
        for part, amount in weighted.items()
    ]


def schedule(shares: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return which stream each sequence of a cycle is from, spread as evenly as can be.

    A cycle has 4096 places (one if there is one stream); each stream has its share of them by the
    largest remainder, and one at least.
    """
    if len(shares) == 1:
        return np.zeros(1, np.int64)
    exact = np.array(shares) * _SLOTS
    slots = np.maximum(1, np.floor(exact).astype(np.int64))
    for number in np.argsort(np.floor(exact) - exact, kind="stable")[
        : max(0, _SLOTS - slots.sum())
    ]:
        slots[number] += 1
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
    streams = np.repeat(np.arange(len(shares)), slots)
    return streams[np.argsort(places, kind="stable")]
