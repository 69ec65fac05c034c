"""Hard rules outside the model: what is protected neither goes in nor comes out.

The guard knows words, not meanings: a protected story in other words passes. It is the floor under
what was trained, and promises no more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tapestry_finetune.charter.automaton import Automaton
from tapestry_finetune.charter.folding import clusters, fold, fold_cluster
from tapestry_finetune.charter.patterns import expressions
from tapestry_finetune.charter.settings import Charter, Protected


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the guard says to a text."""

    is_allowed: bool = True
    reply: str = ""
    """What is said in its place."""
    reason: str = ""
    """Why, in the charter's words."""
    topic: str = ""
    """Of the charter's protected ones."""
    recognized_by: str = ""
    """Such as `term 2` of the topic: which, not what, since that may be protected itself."""


ALLOWED = Ruling()


class Topics:
    """Recognizes some of a charter's protected topics."""

    def __init__(self, topics: Iterable[Protected]) -> None:
        """Recognize `topics`; of several in a text, the one that is complete first."""
        self._named = [
            (topic, name, node)
            for topic in topics
            for name, node in expressions(topic.terms, topic.patterns)
        ]

    @cached_property
    def automaton(self) -> Automaton:
        """What looks for all of them at once."""
        return Automaton(node for _topic, _name, node in self._named)

    def named(self, number: int) -> tuple[Protected, str]:
        """Return the topic of an expression of the automaton, and which of its it is."""
        topic, name, _node = self._named[number]
        return topic, name

    def found_in(self, text: str) -> tuple[Protected, str] | None:
        """Return the topic that `text` touches, and by what; None: none."""
        if not self._named:
            return None
        number = self.automaton.first_in(fold(text))
        return None if number is None else self.named(number)


class Guard:
    """Applies a charter's protected topics."""

    def __init__(self, charter: Charter) -> None:
        """Of `charter`."""
        self._labels = charter.labels
        self._refused = Topics(one for one in charter.protected if one.refuse)
        self._excluded = Topics(one for one in charter.protected if one.exclude_from_training)

    def on_prompt(self, text: str) -> Ruling:
        """Rule on what somebody says to the assistant: if refused, the model is not asked."""
        return self._ruling(self._refused.found_in(text))

    def on_answer(self, text: str) -> Ruling:
        """Rule on what the assistant is about to say."""
        return self._ruling(self._refused.found_in(text))

    def is_protected(self, text: str) -> str | None:
        """Return the topic for which `text` is left out of training; None: it may be used."""
        found = self._excluded.found_in(text)
        return None if found is None else found[0].topic

    def stream(self, pieces: Iterable[str]) -> "GuardedStream":
        """Return `pieces` of an answer as they may be shown."""
        return GuardedStream(self, pieces, self._refused)

    def _ruling(self, found: tuple[Protected, str] | None) -> Ruling:
        if found is None:
            return ALLOWED
        topic, name = found
        return Ruling(
            is_allowed=False,
            reply=topic.answer,
            reason=self._labels.reason.replace("{topic}", topic.topic),
            topic=topic.topic,
            recognized_by=name,
        )

    def ruling_on(self, number: int) -> Ruling:
        """Return the ruling on what the expression `number` was found in."""
        return self._ruling(self._refused.named(number))


class GuardedStream:
    """An answer that arrives in pieces; what may yet become protected waits.

    Nothing of a protected phrase leaves, not even its beginning. When one is complete, the answer
    ends with what the charter says instead, and `ruling` tells why; the source is closed.
    """

    def __init__(self, guard: Guard, pieces: Iterable[str], refused: Topics) -> None:
        """Pass `pieces` on as `guard` allows."""
        self._guard = guard
        self._pieces = pieces
        self._automaton = refused.automaton
        self._state = self._automaton.start
        self._held: list[str] = []
        self._is_blank = False
        self._has_said = False
        self.ruling = ALLOWED

    def __iter__(self) -> Iterator[str]:
        """Yield what may be shown, as soon as it may."""
        open_cluster = ""  # marks that change its last character may still come
        for piece in self._pieces:
            *whole, open_cluster = clusters(open_cluster + piece) or [""]
            free, number = self._read(whole)
            yield from self._said(free)
            if number is not None:
                yield from self._ended(number)
                return
        free, number = self._read([open_cluster] if open_cluster else [])
        yield from self._said(free)
        number = next(iter(self._automaton.at_end(self._state)), None) if number is None else number
        if number is not None:
            yield from self._ended(number)
            return
        yield from self._said("".join(self._held))

    def _read(self, whole: Iterable[str]) -> tuple[str, int | None]:
        """Return what is free to go by now, and the number of an expression that was found."""
        free: list[str] = []
        for cluster in whole:
            folded = fold_cluster(cluster)
            if not (folded == " " and self._is_blank):
                for character in folded:
                    self._state = self._automaton.after(self._state, character)
                    if self._state.found:
                        return "".join(free), self._state.found[0]
            if folded:
                self._is_blank = folded == " "
            self._held.append(cluster)
            if self._state.is_quiet:
                free += self._held
                self._held.clear()
        return "".join(free), None

    def _said(self, text: str) -> Iterator[str]:
        if text:
            self._has_said = self._has_said or bool(text.strip())
            yield text

    def _ended(self, number: int) -> Iterator[str]:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
        self._held.clear()
        self.ruling = self._guard.ruling_on(number)
        yield ("\n\n" if self._has_said else "") + self.ruling.reply
