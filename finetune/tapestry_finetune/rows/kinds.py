"""What a row can be, whatever shape its file had.

| kind   | row        | trains                                   |
|--------|------------|------------------------------------------|
| text   | `TextRow`  | the stages `vocab` and `language`        |
| chat   | `ChatRow`  | the stage `instruct`                     |
| pairs  | `PairRow`  | the stage `values`: of two answers, one  |
| thumbs | `ThumbRow` | the stage `values`: an answer, good or not |
"""

from dataclasses import dataclass
from typing import Literal

Message = dict[str, str]
"""One turn: `role` is one of `ROLES`, `content` is never blank."""

Kind = Literal["text", "chat", "pairs", "thumbs"]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row is from."""

    file: str
    line: int
    """Where it begins, from 1; in Parquet, which row."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class TextRow:
    """Running text."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation: perhaps a system prompt, then turns that end with the assistant's."""

    messages: tuple[Message, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt that ends with the user's turn, and two different answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ThumbRow:
    """A prompt that ends with the user's turn, an answer, and what somebody thought of it."""

    prompt: tuple[Message, ...]
    answer: str
    is_good: bool
    origin: Origin


Row = TextRow | ChatRow | PairRow | ThumbRow

KIND_OF: dict[type[Row], Kind] = {
    TextRow: "text",
    ChatRow: "chat",
    PairRow: "pairs",
    ThumbRow: "thumbs",
}


def thumbs_of(pair: PairRow) -> tuple[ThumbRow, ThumbRow]:
    """Return what a pair says of each of its answers."""
    return (
        ThumbRow(pair.prompt, pair.chosen, is_good=True, origin=pair.origin),
        ThumbRow(pair.prompt, pair.rejected, is_good=False, origin=pair.origin),
    )


def row_text(row: Row) -> str:
    """Return all text of a row, for whoever counts, compares or identifies a language."""
    if isinstance(row, TextRow):
        return row.text
    if isinstance(row, ChatRow):
        return "\n".join(message["content"] for message in row.messages)
    asked = [message["content"] for message in row.prompt]
    answers = [row.chosen, row.rejected] if isinstance(row, PairRow) else [row.answer]
    return "\n".join([*asked, *answers])
