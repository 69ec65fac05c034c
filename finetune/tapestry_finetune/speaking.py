"""How a model of a community speaks: its charter's prompt and guard, and what fits its context."""

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tapestry.errors import RejectedError
from tapestry_finetune.charter.guard import ALLOWED, Guard, Ruling
from tapestry_finetune.charter.prompt import render
from tapestry_finetune.charter.settings import Charter, load_charter
from tapestry_finetune.dialogue import answers, encode, opened
from tapestry_finetune.streaming import Written
from tapestry_finetune.voices import Voice

Message = Mapping[str, str]


class TooLongError(RejectedError):
    """A dialogue has more tokens than the model reads."""

    def __init__(self, tokens: int, most: int) -> None:
        """Say how many it has, and how many the model reads."""
        super().__init__(f"{tokens:,} tokens, and the model reads {most:,}: shorten it")
        self.tokens = tokens
        self.most = most


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """How one of the models speaks."""

    system: str = ""
    """What it is told first."""
    guard: Guard | None = None
    charter: Charter | None = None
    """Whose principles `/why` shows."""


PLAIN = Person()
"""A model that nobody has told anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question to one of the models."""

    model: str | None
    """A bundle's name; None: the untouched base."""
    messages: Sequence[Message]
    """The last is the user's."""
    most_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    cuts_oldest: bool = False
    """Leave the oldest turns out if the model cannot read all; else refuse."""


@dataclass(slots=True)
class Told:
    """How an answer ended; known when its pieces are through."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    """That the model wrote, with the one that ends its turn."""
    reason: str = "stop"
    """`stop`, `length`, or `content_filter`: the charter's guard spoke instead."""
    guard_reason: str = ""
    guard_topic: str = ""
    turns_left_out: int = 0


def person_of(charter_file: Path | None, *, is_told: bool) -> Person:
    """Return how a model with a charter speaks.

    Args:
        charter_file: The charter; None: there is none.
        is_told: Whether the charter is its system prompt too.

    Raises:
        ConfigError: The charter cannot be used.
    """
    if charter_file is None:
        return PLAIN
    charter = load_charter(charter_file)
    system = render(charter) if is_told else ""
    return Person(system=system, guard=Guard(charter), charter=charter)


def speak(voice: Voice, asked: Asked, person: Person, told: Told) -> Iterator[str]:
    """Yield the answer as it may be shown; `told` is filled in on the way.

    Closing the iterator stops the model.

    Raises:
        TooLongError: The dialogue is longer than the model reads.
    """
    voice = dataclasses.replace(voice, system=person.system)
    guard = person.guard
    if guard is not None:
        ruling = _ruling_on(asked.messages, guard)
        if not ruling.is_allowed:
            _note(told, ruling)
            yield ruling.reply
            return
        asked = dataclasses.replace(asked, messages=_without_refused(asked.messages, guard))
    messages = _fitting(voice, asked, told)
    written = Written()
    writing = cast(
        "Generator[str]",
        answers(
            voice,
            messages,
            most_tokens=asked.most_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            written=written,
        ),
    )
    kept = _Kept(writing)
    pieces: Iterable[str] = until(kept, asked.stop) if asked.stop else kept
    stream = None if guard is None else guard.stream(pieces)
    try:
        yield from pieces if stream is None else stream
    finally:
        writing.close()
        told.answer_tokens = written.tokens
        if not written.is_ended and not any(text in kept.text for text in asked.stop):
            told.reason = "length"
        if stream is not None and not stream.ruling.is_allowed:
            _note(told, stream.ruling)


def _ruling_on(messages: Sequence[Message], guard: Guard) -> Ruling:
    """Rule on all that the user has said since the assistant spoke last, as one text and each."""
    said: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        if message["role"] == "user":
            said.insert(0, message["content"])
    texts = dict.fromkeys((*said, " ".join(said)))  # one message is its own whole
    rulings = map(guard.on_prompt, texts)
    return next((ruling for ruling in rulings if not ruling.is_allowed), ALLOWED)


def _without_refused(messages: Sequence[Message], guard: Guard) -> list[Message]:
    """Return a dialogue without the turns that were refused: the model does not hear of them."""
    kept: list[Message] = []
    is_refused = False
    for message in messages:
        if message["role"] == "user":
            is_refused = not guard.on_prompt(message["content"]).is_allowed
        if not is_refused or message["role"] == "system":
            kept.append(message)
    return kept


def _note(told: Told, ruling: Ruling) -> None:
    told.reason = "content_filter"
    told.guard_reason, told.guard_topic = ruling.reason, ruling.topic


class _Kept:
    """Keeps what a model has written, whatever of it is shown."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self.text = ""

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece


def _fitting(voice: Voice, asked: Asked, told: Told) -> list[Message]:
    """Return the dialogue, without its oldest turns if the model cannot read them all."""
    messages = opened(voice, asked.messages)
    reserved = min(asked.most_tokens, voice.context_tokens // 4) if asked.cuts_oldest else 1
    most = voice.context_tokens - reserved
    while True:
        told.prompt_tokens = len(encode(voice.tokenizer, messages, opens_answer=True))
        if told.prompt_tokens <= most:
            return messages
        turns = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
        if not asked.cuts_oldest or not turns:
            raise TooLongError(told.prompt_tokens, most)
        end = next((i for i in turns[1:] if messages[i]["role"] == "user"), len(messages) - 1)
        gone = [i for i in turns if i < end]
        messages = [message for i, message in enumerate(messages) if i not in gone]
        told.turns_left_out += len(gone)


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield `pieces` up to the first of the texts in `stop`; what may yet become one waits."""
    held, longest = "", max(map(len, stop))
    for piece in pieces:
        held += piece
        found = [held.index(one) for one in stop if one in held]
        if found:
            yield held[: min(found)]
            return
        free = max(0, len(held) - longest + 1)
        if free:
            yield held[:free]
        held = held[free:]
    yield held
