"""A quick look between steps at what is held out; the whole evaluation comes at the end."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tapestry_finetune.choosing import Chosen
from tapestry_finetune.evaluation.bits import bits_per_byte
from tapestry_finetune.gathering import Gathered
from tapestry_finetune.rows.kinds import PairRow, ThumbRow
from tapestry_finetune.scoring import answer_likelihoods
from tapestry_finetune.voices import Voice

_MOST_TEXT_BYTES = 16_384
_MOST_CHATS = 16
_MOST_PAIRS = 16


def held_out_measure(
    stage: str,
    gathered: Gathered,
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    chosen: Chosen,
) -> Callable[[Any], float] | None:
    """Return what measures a module on a little of what `stage` holds out; lower is better.

    Bits per byte of text, or of answers; for values the share of pairs whose worse answer is held
    likelier, by token, a pair being any good and any bad answer where there are thumbs. None:
    nothing of the kind is held out.
    """
    if stage == "language":
        documents = first_bytes(gathered.held_out_text(), _MOST_TEXT_BYTES)
        if documents:
            return lambda module: bits_per_byte(
                Voice(module=module, tokenizer=tokenizer),
                documents,
                window_tokens=chosen.sequence_tokens,
            )
    if stage == "instruct":
        chats = gathered.held_out_chats()[:_MOST_CHATS]
        if chats:
            asked = [(chat.messages[:-1], chat.messages[-1]["content"]) for chat in chats]
            return lambda module: _answer_bits(Voice(module=module, tokenizer=tokenizer), asked)
    if stage == "values":
        pairs = [row for row in gathered.held_out if isinstance(row, PairRow)][:_MOST_PAIRS]
        if pairs:
            return lambda module: _wrong(Voice(module=module, tokenizer=tokenizer), pairs)
        thumbs = [row for row in gathered.held_out if isinstance(row, ThumbRow)][: 2 * _MOST_PAIRS]
        if len({row.is_good for row in thumbs}) == 2:
            return lambda module: _wrong_thumbs(Voice(module=module, tokenizer=tokenizer), thumbs)
    return None


def first_bytes(documents: Sequence[str], most_bytes: int) -> list[str]:
    """Return the first documents, about `most_bytes` of them."""
    taken: list[str] = []
    size = 0
    for document in documents:
        if size and size + len(document.encode()) > most_bytes:
            break
        taken.append(document[:most_bytes])
        size += len(document.encode())
    return taken


def _answer_bits(voice: Voice, asked: Sequence[tuple[Any, str]]) -> float:
    found = answer_likelihoods(voice, asked)
    nats = math.fsum(one.nats for one in found)
    return -nats / math.log(2) / max(1, sum(one.text_bytes for one in found))


def _wrong(voice: Voice, pairs: Sequence[PairRow]) -> float:
    found = _by_token(voice, [(r.prompt, text) for r in pairs for text in (r.chosen, r.rejected)])
    return sum(found[i] <= found[i + 1] for i in range(0, len(found), 2)) / len(pairs)


def _wrong_thumbs(voice: Voice, thumbs: Sequence[ThumbRow]) -> float:
    found = _by_token(voice, [(row.prompt, row.answer) for row in thumbs])
    good = [one for one, row in zip(found, thumbs, strict=True) if row.is_good]
    bad = [one for one, row in zip(found, thumbs, strict=True) if not row.is_good]
    return sum(one <= other for one in good for other in bad) / (len(good) * len(bad))


def _by_token(voice: Voice, asked: Sequence[tuple[Any, str]]) -> list[float]:
    return [one.nats / one.tokens for one in answer_likelihoods(voice, asked)]
