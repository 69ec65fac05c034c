"""A quick look between steps at what is held out; the whole evaluation comes at the end."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tapestry_finetune.choosing import Chosen
from tapestry_finetune.evaluation.bits import bits_per_byte
from tapestry_finetune.gathering import Gathered
from tapestry_finetune.rows.kinds import PairRow
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
    likelier, by token. None: nothing of the kind is held out.
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
    asked = [(row.prompt, text) for row in pairs for text in (row.chosen, row.rejected)]
    found = [one.nats / one.tokens for one in answer_likelihoods(voice, asked)]
    return sum(found[i] <= found[i + 1] for i in range(0, len(found), 2)) / len(pairs)
