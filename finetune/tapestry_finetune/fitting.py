"""Which rows a base can read whole."""

from collections.abc import Iterator, Sequence
from typing import Any

from tapestry_finetune.dialogue import encode
from tapestry_finetune.rows.kinds import ChatRow, Message, Origin, PairRow, Row, TextRow, ThumbRow

_TURN_TOKENS = 16
"""More than a template adds to a turn."""


def rows_beyond(
    context_tokens: int,
    rows: Sequence[Row],
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
) -> Iterator[Origin]:
    """Yield where the rows are that have more than `context_tokens`; running text is cut to fit."""
    for row in rows:
        if isinstance(row, TextRow):
            continue
        for messages in _dialogues(row):
            most = sum(len(m["content"].encode()) + _TURN_TOKENS for m in messages)
            if most > context_tokens and len(encode(tokenizer, messages)) > context_tokens:
                yield row.origin
                break


def _dialogues(row: ChatRow | PairRow | ThumbRow) -> Iterator[Sequence[Message]]:
    if isinstance(row, ChatRow):
        yield row.messages
        return
    answers = (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.answer,)
    for answer in answers:
        yield *row.prompt, {"role": "assistant", "content": answer}
