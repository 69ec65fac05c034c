"""A conversation in which the base and a community's model can both be heard; no terminal in it."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tapestry.errors import ConfigError, RejectedError
from tapestry_finetune.assistants import Assistant
from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.settings import Charter, Principle
from tapestry_finetune.ratings import Ratings
from tapestry_finetune.speaking import PLAIN, Asked, Person, Told, speak

MOST_CHARACTERS = 32_000
"""Of a question."""

_MOST_PRINCIPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How answers are written."""

    most_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Turn:
    """A question, and what was answered."""

    prompt: list[dict[str, str]]
    """The dialogue up to it."""
    answer: str = ""
    base_answer: str | None = None
    told: Told = field(default_factory=Told)


class Conversation:
    """Questions and answers so far."""

    def __init__(
        self, assistant: Assistant, name: str | None, person: Person, manner: Manner
    ) -> None:
        """With the bundle `name` of `assistant`, or with None its base."""
        self.name = name
        self.person = person
        self.told = Told()
        """Of the answer that was written last, by whomever."""
        self._assistant = assistant
        self._manner = manner
        self._turns: list[Turn] = []

    @property
    def last(self) -> Turn | None:
        """The question that was asked last."""
        return self._turns[-1] if self._turns else None

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer, piece by piece; what was said so far is kept if that is stopped.

        Raises:
            RejectedError: The question is too long.
        """
        if len(text) > MOST_CHARACTERS:
            raise RejectedError(f"{len(text):,} characters, and at most {MOST_CHARACTERS:,}")
        prompt = [message for turn in self._turns for message in _said(turn)]
        turn = Turn([*prompt, {"role": "user", "content": text}])
        self.told = turn.told
        pieces: list[str] = []
        try:
            for piece in self._written(self.name, turn, self.person, turn.told):
                pieces.append(piece)
                yield piece
        finally:
            turn.answer = "".join(pieces).strip()
            if turn.answer:
                self._turns.append(turn)

    def ask_base(self) -> Iterator[str]:
        """Yield what the untouched base answers to the last question; the dialogue stays as it is.

        The charter's guard watches over it, its prompt is not given.

        Raises:
            ConfigError: Nothing was asked.
        """
        turn = self._required()
        self.told = Told()
        person = Person(guard=self.person.guard) if self.person.guard is not None else PLAIN
        pieces: list[str] = []
        try:
            for piece in self._written(None, turn, person, self.told):
                pieces.append(piece)
                yield piece
        finally:
            turn.base_answer = "".join(pieces).strip()

    def rate(self, ratings: Ratings, *, is_good: bool) -> list[Path]:
        """Keep what somebody thought of the last answer; return the files.

        Raises:
            ConfigError: Nothing was answered.
        """
        turn = self._required()
        return ratings.keep(turn.prompt, turn.answer, is_good=is_good, beside=turn.base_answer)

    def principles(self) -> list[Principle]:
        """Return the charter's principles that are nearest to the last question and answer."""
        charter, turn = self.person.charter, self.last
        if charter is None:
            return []
        said = "" if turn is None else f"{turn.prompt[-1]['content']} {turn.answer}"
        return nearest_principles(charter, said)

    def tell_first(self, words: str) -> None:
        """Give the assistant another system prompt, from the next question on."""
        self.person = dataclasses.replace(self.person, system=words)

    def begin_again(self) -> None:
        """Forget what was said."""
        self._turns.clear()

    def _written(self, name: str | None, turn: Turn, person: Person, told: Told) -> Iterator[str]:
        asked = Asked(
            model=name,
            messages=turn.prompt,
            most_tokens=self._manner.most_tokens,
            temperature=self._manner.temperature,
            seed=self._manner.seed + len(self._turns),
            cuts_oldest=True,
        )
        with self._assistant.speaking_as(name) as voice:
            yield from speak(voice, asked, person, told)

    def _required(self) -> Turn:
        if self.last is None:
            raise ConfigError("nothing was asked yet")
        return self.last


def _said(turn: Turn) -> list[dict[str, str]]:
    return [turn.prompt[-1], {"role": "assistant", "content": turn.answer}]


def nearest_principles(charter: Charter, text: str) -> list[Principle]:
    """Return the principles whose words and cases have most of the words of `text`.

    The heavier one comes first where two are as near.
    """
    words = _words(text)
    near = {principle.id: len(words & _words_of(principle)) for principle in charter.principle}
    for case in charter.case:
        shared = len(words & _words(" ".join(case.prompts)))
        for name in case.principles:
            near[name] = max(near.get(name, 0), shared)
    ranked = sorted(charter.principle, key=lambda one: (-near[one.id], -one.weight))
    return ranked[:_MOST_PRINCIPLES]


def _words_of(principle: Principle) -> set[str]:
    return _words(f"{principle.text} {principle.behaviour} {principle.counter_example}")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", fold(text)))
