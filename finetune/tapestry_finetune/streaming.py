"""An answer as text while its tokens are written."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

_INCOMPLETE = "\ufffd"
"""What the first bytes of a character are decoded to."""


@dataclass(slots=True)
class Written:
    """How much of an answer has been written."""

    tokens: int = 0
    """With the one that ends the turn."""
    is_ended: bool = False
    """Whether the model ended its turn itself."""


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Takes tokens in one thread and yields text in another, as soon as a character is whole.

    Those of transformers wait for a blank, which never comes in Khmer or Thai.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:  # noqa: ANN401
        """Decode with `tokenizer`; `ends` are the tokens that end a turn."""
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._is_prompt = True
        self._tokens: list[int] = []
        self._said = 0
        self._count = 0
        self._is_ended = False
        self._queue: SimpleQueue[tuple[str, Written] | None] = SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then a token at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            self._count += 1
            self._is_ended = token in self._ends
            self._tokens.append(token)
        text = self._decoded()
        if not text.endswith(_INCOMPLETE):
            self._say(text)

    def end(self) -> None:
        """Let go of what has waited."""
        self._say(self._decoded())
        self._queue.put(None)

    def __iter__(self) -> Iterator[tuple[str, Written]]:
        """Yield pieces of text, each with how much has been written when it was; some are empty."""
        while (piece := self._queue.get()) is not None:
            yield piece

    def _decoded(self) -> str:
        return str(
            self._tokenizer.decode(
                self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _say(self, text: str) -> None:
        self._queue.put((text[self._said :], Written(self._count, self._is_ended)))
        self._said = len(text)
        if text.endswith("\n"):  # nothing before it is looked at again
            self._tokens, self._said = [], 0
