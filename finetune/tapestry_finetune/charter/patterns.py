r"""What a community writes to have its protected topics recognized, as trees of letters.

A *term* is a word or a phrase, as whole words; `*` in it stands for the rest of a word. A *pattern*
is a regular expression without what makes matching slow: `.`, `[a-z]`, `[^a-z]`, `( | )`, `*`, `+`,
`?`, `{2,5}`, `\b` (an edge of a word), `\d`, `\w`, `\s`. Both are found anywhere in a text.
Both are folded (`folding`) as the text is; `automaton` runs them in time linear in the text.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tapestry.errors import ConfigError
from tapestry_finetune.charter.folding import fold, fold_cluster, is_letter, joins

_MOST_LETTERS = 200
"""Of one expression, with what its repetitions come to."""
_DEEPEST = 40
_EXPANDED_RANGE = 1024
"""A longer range of letters is taken as it is, without folding each."""
_MAGIC = "\\.[](){}|*+?^$"
_COUNT = re.compile(r"\{(\d{1,4})(,)?(\d{1,4})?\}")


@dataclass(frozen=True, slots=True)
class Letter:
    """One folded character: given, or of a class; no character at all is the edge of a word."""

    only: str = ""
    """The character; "" for a class."""
    characters: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    kinds: str = ""
    """Of d, w, s, D, W, S; l: a letter of a script with blanks; .: whatever."""
    is_negated: bool = False
    is_edge: bool = False

    def matches(self, character: str) -> bool:
        """Whether it stands for a folded character."""
        if self.only or self.is_edge:
            return character == self.only and not self.is_edge
        found = (
            character in self.characters
            or any(first <= character <= last for first, last in self.ranges)
            or any(_is_of(kind, character) for kind in self.kinds)
        )
        return found is not self.is_negated


@dataclass(frozen=True, slots=True)
class InOrder:
    """One after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Any of these."""

    choices: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """So many times; `most` None: any number."""

    node: "Node"
    least: int
    most: int | None


Node = Letter | InOrder | Either | Repeated

EDGE = Letter(is_edge=True)
_REST_OF_WORD = Repeated(Letter(kinds="l"), 0, None)


def expressions(terms: Sequence[str], patterns: Sequence[str]) -> Iterator[tuple[str, Node]]:
    """Yield a name and a tree for each term and pattern.

    Raises:
        ConfigError: One of them cannot be used.
    """
    for number, term in enumerate(terms, start=1):
        yield f"term {number}", parse_term(term)
    for number, pattern in enumerate(patterns, start=1):
        yield f"pattern {number}", parse_pattern(pattern)


def parse_term(term: str) -> Node:
    """Return a word or phrase as a tree.

    Raises:
        ConfigError: It has no letters.
    """
    if not any(character.isalnum() for character in fold(term)):
        raise ConfigError(f"term {term!r:.60} has no letters: it would never be recognized")
    folded = fold(term).strip()
    inner = (_REST_OF_WORD if character == "*" else Letter(character) for character in folded)
    return _checked(InOrder((EDGE, *inner, EDGE)), f"term {term!r:.60}")


def parse_pattern(pattern: str) -> Node:
    """Return a regular expression as a tree.

    Raises:
        ConfigError: It is not one, has something that is not understood, is too large, or
            matches the empty text.
    """
    reading = _Reading(unicodedata.normalize("NFC", pattern), f"pattern {pattern!r:.60}")
    node = reading.either(0)
    if reading.rest:
        raise reading.refused(f"{reading.rest[:10]!r} closes nothing")
    return _checked(node, reading.named)


def _checked(node: Node, named: str) -> Node:
    if letters(node) > _MOST_LETTERS:
        raise ConfigError(
            f"{named} comes to {letters(node):,} letters, {_MOST_LETTERS} are the most: "
            "split it, or repeat less"
        )
    if may_be_empty(node):
        raise ConfigError(f"{named} matches the empty text, and so everything: ask for a letter")
    return node


def letters(node: Node) -> int:
    """Return how many letters a tree comes to when its repetitions are written out."""
    match node:
        case Letter():
            return 1
        case InOrder(parts) | Either(parts):
            return sum(map(letters, parts))
        case Repeated(inner, least, most):
            return letters(inner) * max(1, least, most or 0)


def may_be_empty(node: Node) -> bool:
    """Whether a tree matches without a letter."""
    match node:
        case Letter():
            return node.is_edge
        case InOrder(parts):
            return all(map(may_be_empty, parts))
        case Either(choices):
            return any(map(may_be_empty, choices))
        case Repeated(inner, least, _most):
            return least == 0 or may_be_empty(inner)


@dataclass
class _Reading:
    """A pattern while it is read, from left to right."""

    text: str
    named: str
    at: int = field(default=0)

    @property
    def rest(self) -> str:
        return self.text[self.at :]

    def refused(self, why: str) -> ConfigError:
        return ConfigError(f"{self.named}, character {self.at + 1}: {why}")

    def unknown(self, escaped: str) -> ConfigError:
        return self.refused(f"\\{escaped} is not known here; known: \\b \\d \\w \\s")

    def takes(self, expected: str) -> bool:
        """Go past `expected` if it comes next."""
        if not self.text.startswith(expected, self.at):
            return False
        self.at += len(expected)
        return True

    def take(self) -> str:
        """Return the next character."""
        if self.at >= len(self.text):
            raise self.refused("ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def either(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise self.refused(f"more than {_DEEPEST} brackets in each other")
        choices = [self.in_order(depth)]
        while self.takes("|"):
            choices.append(self.in_order(depth))
        return choices[0] if len(choices) == 1 else Either(tuple(choices))

    def in_order(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom(depth)))
        return InOrder(tuple(parts))

    def repeated(self, node: Node) -> Node:
        counted = _COUNT.match(self.text, self.at)
        if counted:
            self.at = counted.end()
            least = int(counted[1])
            most = int(counted[3]) if counted[3] else None if counted[2] else least
            if most is not None and most < least:
                raise self.refused(f"{counted[0]} counts backwards")
            node = Repeated(node, least, most)
        elif self.at < len(self.text) and self.text[self.at] in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.take()]
            node = Repeated(node, least, most)
        else:
            return node
        self.takes("?")  # "as few as possible" changes nothing about whether there is a match
        if self.at < len(self.text) and self.text[self.at] in "*+?":
            raise self.refused("repeats a repetition: put it into ( )")
        return node

    def atom(self, depth: int) -> Node:
        character = self.take()
        if character == "(":
            if self.takes("?") and not self.takes(":"):
                raise self.refused("( ) may only group here; nothing that begins with (? is known")
            inner = self.either(depth + 1)
            if not self.takes(")"):
                raise self.refused("a ( is never closed")
            return inner
        if character == "[":
            return self.letters_of_class()
        if character == ".":
            return Letter(kinds=".")
        if character == "\\":
            return self.escaped()
        if character in _MAGIC:
            known = "^ and $ are not known; a pattern is found anywhere"
            why = known if character in "^$" else f"{character} stands alone; write \\{character}"
            raise self.refused(why)
        return self.literal(character)

    def literal(self, character: str) -> Node:
        """Return a character with the marks that join it; blanks in a row are one."""
        while self.at < len(self.text) and (
            joins(self.text[self.at]) or (character.isspace() and self.text[self.at].isspace())
        ):
            character += self.take()
        return _in_order(fold(character))

    def escaped(self) -> Node:
        character = self.take()
        if character == "b":
            return EDGE
        if character in "dwDW":
            return Letter(kinds=character)
        if character in "sS":
            return Letter(" ") if character == "s" else Letter(kinds="S")
        if character.isalnum():
            raise self.unknown(character)
        return self.literal(character)

    def letters_of_class(self) -> Node:
        is_negated = self.takes("^")
        members = _Members()
        is_first = True
        while is_first or not self.takes("]"):
            is_first = False
            is_escaped = self.takes("\\")
            first = last = self.take()
            if is_escaped and first in "dwsDWS":
                members.kinds += first
                continue
            if is_escaped and first.isalnum():
                raise self.unknown(first)
            if self.rest[:1] == "-" and self.rest[1:2] not in {"", "]"}:
                self.take()
                self.takes("\\")
                last = self.take()
            if last < first:
                raise self.refused(f"{first}-{last} counts backwards")
            members.add(first, last)
        return members.node(is_negated=is_negated)


@dataclass
class _Members:
    """Of a class in [ ]."""

    singles: set[str] = field(default_factory=set)
    longer: list[Node] = field(default_factory=list)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    kinds: str = ""

    def add(self, first: str, last: str) -> None:
        """Add the characters from `first` to `last`, folded."""
        if ord(last) - ord(first) > _EXPANDED_RANGE:
            self.ranges.append((first, last))
            return
        for code in range(ord(first), ord(last) + 1):
            folded = fold_cluster(chr(code))
            if len(folded) == 1:
                self.singles.add(folded)
            elif folded:
                self.longer.append(_in_order(folded))

    def node(self, *, is_negated: bool) -> Node:
        """Return the class; what folds into several characters is a choice beside it."""
        one = Letter(
            characters=frozenset(self.singles),
            ranges=tuple(self.ranges),
            kinds=self.kinds,
            is_negated=is_negated,
        )
        return one if is_negated or not self.longer else Either((one, *self.longer))


def _in_order(folded: str) -> Node:
    return InOrder(tuple(Letter(character) for character in folded))


def _is_of(kind: str, character: str) -> bool:
    match kind:
        case ".":
            return True
        case "d":
            return character.isdecimal()
        case "s":
            return character == " "
        case "l":
            return is_letter(character)
        case "w":
            is_mark = unicodedata.category(character)[0] == "M"
            return character.isalnum() or is_mark or character == "_"
    return not _is_of(kind.lower(), character)
