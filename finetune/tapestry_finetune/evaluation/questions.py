"""Answers to a suite's questions: by the likelihood of each choice, or as the model gives them."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from tapestry_finetune.dialogue import answer, encode, opened
from tapestry_finetune.evaluation.bits import bits_of, first_token
from tapestry_finetune.evaluation.items import ChoiceItem, ExactItem, Suite, TextItem
from tapestry_finetune.evaluation.series import Series, sliced
from tapestry_finetune.scoring import answer_likelihoods, continuation_likelihoods
from tapestry_finetune.voices import Voice

_ITEMS_AT_ONCE = 16
_OUTER = (
    " \t.,;:!?\"'()[]*`\u2018\u2019\u201c\u201d\u00ab\u00bb"
    "\u2026\u3002\u3001\uff01\uff1f\u061f\u060c\u0964"
)
"""What may stand around an answer; signs that change it, such as a minus, may not."""

_Amounts = tuple[Sequence[float], Sequence[float] | None]

OnProgress = Callable[[str, int, int], None]
"""Called with what is measured, how many are done, and of how many."""


def measure_suite(
    voice: Voice,
    suite: Suite,
    *,
    window_tokens: int,
    context_tokens: int,
    on_progress: OnProgress,
) -> list[Series]:
    """Return the figures of a suite, and of its languages and domains."""
    made: list[Series] = []
    measures: tuple[tuple[type, Callable[[list[Any]], dict[str, _Amounts]]], ...] = (
        (ChoiceItem, lambda items: _choices(voice, items, suite.name, on_progress)),
        (ExactItem, lambda items: _exact(voice, items, suite.name, on_progress)),
        (
            TextItem,
            lambda items: _texts(voice, items, window_tokens, context_tokens),
        ),
    )
    for kind, measure in measures:
        at = [number for number, item in enumerate(suite.items) if isinstance(item, kind)]
        if not at:
            continue
        tags = [suite.tags[number] for number in at]
        ids = [suite.ids[number] for number in at]
        found = measure([suite.items[number] for number in at])
        for name, (amounts, weights) in found.items():
            made += sliced(name, suite.name, ids, amounts, weights, tags=tags)
    return made


def _choices(
    voice: Voice, items: list[ChoiceItem], name: str, on_progress: OnProgress
) -> dict[str, _Amounts]:
    """Return for each question whether its answer is the likeliest, as it is and per byte."""
    raw: list[float] = []
    per_byte: list[float] = []
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        some = items[start : start + _ITEMS_AT_ONCE]
        nats = iter(_nats(voice, [(item, choice) for item in some for choice in item.choices]))
        for item in some:
            sums = [next(nats) for _choice in item.choices]
            means = [
                one / len(choice.encode()) for one, choice in zip(sums, item.choices, strict=True)
            ]
            raw.append(_is_likeliest(sums, item.answer))
            per_byte.append(_is_likeliest(means, item.answer))
        on_progress(name, len(raw), len(items))
    return {"choice": (raw, None), "choice_per_byte": (per_byte, None)}


def _nats(voice: Voice, asked: list[tuple[ChoiceItem, str]]) -> list[float]:
    """Return the log-likelihood of each choice after its question."""
    nats = [0.0] * len(asked)
    spoken = [number for number, (item, _) in enumerate(asked) if not item.plain]
    plain = [number for number, (item, _) in enumerate(asked) if item.plain]
    if spoken:
        found = answer_likelihoods(
            voice,
            [
                ([{"role": "user", "content": asked[number][0].prompt}], asked[number][1])
                for number in spoken
            ],
        )
        for number, likelihood in zip(spoken, found, strict=True):
            nats[number] = likelihood.nats
    if plain:
        pairs = [_plain(voice, *asked[number]) for number in plain]
        for number, one in zip(plain, continuation_likelihoods(voice, pairs), strict=True):
            nats[number] = one
    return nats


def _plain(voice: Voice, item: ChoiceItem, choice: str) -> tuple[list[int], list[int]]:
    """Return a question and a choice as running text, parted where their tokens part."""
    text = f"{voice.system}\n\n{item.prompt}" if voice.system else item.prompt
    blank = "" if text[-1].isspace() else " "
    seen = voice.tokenizer.encode(text, add_special_tokens=False)
    whole = voice.tokenizer.encode(f"{text}{blank}{choice}", add_special_tokens=False)
    paired = zip(seen, whole[:-1], strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], paired))
    return [first_token(voice), *whole[:same]], whole[same:]


def _is_likeliest(values: Sequence[float], answer_at: int) -> float:
    """Return 1 if one value is above all others; what is no number wins nothing."""
    others = [value for number, value in enumerate(values) if number != answer_at]
    return float(all(values[answer_at] > other for other in others))


def _exact(
    voice: Voice, items: list[ExactItem], name: str, on_progress: OnProgress
) -> dict[str, _Amounts]:
    """Return for each question whether the first line of the answer is one of those accepted."""
    right: list[float] = []
    for item in items:
        longest = max(len(voice.tokenizer.encode(one)) for one in item.accept)
        said = answer_within(voice, item.prompt, most_tokens=2 * longest + 8)
        right.append(float(is_accepted(said, item.accept)))
        on_progress(name, len(right), len(items))
    return {"exact": (right, None)}


def answer_within(voice: Voice, prompt: str, *, most_tokens: int) -> str:
    """Return the answer to a prompt; an empty one where the model's context leaves no room."""
    asked = opened(voice, [{"role": "user", "content": prompt}])
    if len(encode(voice.tokenizer, asked, opens_answer=True)) >= voice.context_tokens:
        return ""
    return answer(voice, asked, most_tokens=most_tokens)


def is_accepted(said: str, accept: Sequence[str]) -> bool:
    """Whether the first line of an answer is one of `accept`, but for case and outer marks."""
    first = next((line for line in said.splitlines() if line.strip()), "")
    return _bare(first) in {_bare(one) for one in accept}


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.strip(_OUTER).split())


def _texts(
    voice: Voice, items: list[TextItem], window_tokens: int, context_tokens: int
) -> dict[str, _Amounts]:
    bits, text_bytes = bits_of(
        voice,
        [item.text for item in items],
        window_tokens=window_tokens,
        context_tokens=context_tokens,
    )
    return {"bits_per_byte": (list(bits), list(text_bytes))}
