"""Bits per byte of held-out text: every token is predicted once, with as much before it as fits.

A document that is longer than the window is taken in overlapping pieces. With `context_tokens = 1`
the pieces lie side by side, which is what lm-evaluation-harness measures.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tapestry.errors import ConfigError
from tapestry_finetune.evaluation.series import Floats
from tapestry_finetune.scoring import continuation_likelihoods
from tapestry_finetune.voices import Voice

_PAIRS_AT_ONCE = 64


def pieces(
    tokens: Sequence[int], *, before: int, window: int, context: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield what is seen and what is predicted after it, until every token was predicted once.

    Args:
        tokens: Of a document.
        before: The token that stands in front of the document.
        window: Most tokens that are predicted from or seen at once.
        context: Of a later piece, how many tokens it sees at least before those that it predicts.
    """
    row = [before, *tokens]
    start, done = 0, 1
    while done < len(row):
        if done > 1:
            start = max(start, done - context)
        stop = min(len(row), start + window + 1)
        if stop == len(row):  # the last piece sees as much as fits
            start = max(0, stop - window - 1)
        yield row[start:done], row[done:stop]
        done = stop


def bits_of(
    voice: Voice,
    texts: Sequence[str],
    *,
    window_tokens: int = 1024,
    context_tokens: int = 512,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Floats, Floats]:
    """Return the bits that each text costs the model, and its bytes in UTF-8.

    Raises:
        ConfigError: The tokenizer has no token to begin a text with.
    """
    before = first_token(voice)
    window = min(window_tokens, voice.context_tokens - 1)
    context = min(context_tokens, max(1, window // 2))
    asked: list[tuple[list[int], list[int]]] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        tokens = voice.tokenizer.encode(text, add_special_tokens=False)
        for pair in pieces(tokens, before=before, window=window, context=context):
            asked.append(pair)
            owners.append(number)
    bits = np.zeros(len(texts))
    for start in range(0, len(asked), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        nats = continuation_likelihoods(voice, asked[some])
        np.add.at(bits, owners[some], -np.asarray(nats) / math.log(2))
        if on_progress is not None:
            on_progress(min(len(asked), start + _PAIRS_AT_ONCE), len(asked))
    return bits, np.array([len(text.encode()) for text in texts], np.float64)


def bits_per_byte(voice: Voice, texts: Sequence[str], *, window_tokens: int = 1024) -> float:
    """Return the mean over the bytes of `texts`, pieces of a long one side by side."""
    bits, text_bytes = bits_of(voice, texts, window_tokens=window_tokens, context_tokens=1)
    return float(bits.sum() / max(1.0, text_bytes.sum()))


def first_token(voice: Voice) -> int:
    """Return the token that stands before a text.

    Raises:
        ConfigError: The tokenizer has none.
    """
    for token in (voice.tokenizer.bos_token_id, voice.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError("the tokenizer has neither a first nor a last token: no text can begin")
