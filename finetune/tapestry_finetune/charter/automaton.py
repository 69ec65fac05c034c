"""All expressions of a charter at once, over a text, in one pass.

The letters of all expressions are numbered; a set of them is where a match may be by now. A state
is such a set (Glushkov's automaton); what follows from a state and a character is worked out once
and kept. So the time is linear in the text, whatever the expressions are, and a text can come in
pieces. An edge of a word is a letter that takes no character: it may stand wherever not two letters
of a spaced script meet. Expressions that begin alike share letters, so that thousands of terms cost
little more than one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tapestry_finetune.charter.folding import is_letter
from tapestry_finetune.charter.patterns import Either, InOrder, Letter, Node, Repeated

_MOST_STATES = 20_000
"""Kept; then they are forgotten, and worked out anew."""
_BEGIN = 0
"""The number of what stands before every expression."""

_Set = frozenset[int]


@dataclass(slots=True, eq=False)
class State:
    """Where matches may be after what was read."""

    numbers: _Set
    """Of the letters read last, in matches that have begun."""
    is_in_word: bool
    """Whether the last character was a letter."""
    found: tuple[int, ...] = ()
    """Numbers of the expressions that match here."""
    following: dict[str, "State"] = field(default_factory=dict)

    @property
    def is_quiet(self) -> bool:
        """Whether no match has begun: what was read can be in none."""
        return not self.numbers


@dataclass(slots=True)
class _Place:
    """A letter of an expression, and what may follow it."""

    letter: Letter
    given: dict[str, list[int]] = field(default_factory=dict)
    """Letters by the one character that they take."""
    classes: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    """All of these."""
    ends: list[int] = field(default_factory=list)
    """Numbers of the expressions that may end here."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A tree whose letters are numbered."""

    may_be_empty: bool
    first: _Set
    last: _Set


_NOTHING = _Part(may_be_empty=True, first=frozenset(), last=frozenset())


class Automaton:
    """Finds expressions in folded text."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Look for `nodes`; they are counted from 0."""
        self._places = [_Place(Letter())]
        self._shared: dict[tuple[int, Letter], int] = {}
        for number, node in enumerate(nodes):
            self._add_expression(number, node)
        self._states: dict[tuple[_Set, bool, tuple[int, ...]], State] = {}
        self.start = State(frozenset(), is_in_word=False)
        """Before the first character."""

    def after(self, state: State, character: str) -> State:
        """Return the state after one more character."""
        following = state.following.get(character)
        return following if following is not None else self._step(state, character)

    def at_end(self, state: State) -> tuple[int, ...]:
        """Return the numbers of the expressions that match because the text ends here."""
        return self._found(self._at_edge(state.numbers) - state.numbers)

    def first_in(self, folded: str) -> int | None:
        """Return the number of the expression whose first match ends first; None: there is none."""
        state = self.start
        for character in folded:
            following = state.following.get(character)
            state = following if following is not None else self._step(state, character)
            if state.found:
                return state.found[0]
        return next(iter(self.at_end(state)), None)

    def all_in(self, folded: str) -> set[int]:
        """Return the numbers of all expressions that match somewhere."""
        state, found = self.start, set[int]()
        for character in folded:
            state = self.after(state, character)
            found.update(state.found)
        return found | set(self.at_end(state))

    def _step(self, state: State, character: str) -> State:
        is_in_word = is_letter(character)
        before = state.numbers
        if not (state.is_in_word and is_in_word):
            before = self._at_edge(before)
        numbers = self._taking(before, character)
        found = self._found((before - state.numbers) | numbers)
        if len(self._states) >= _MOST_STATES:
            self._states.clear()
            self.start.following.clear()
            state.following.clear()
        key = (numbers, is_in_word, found)
        following = self._states.get(key)
        if following is None:
            following = self._states[key] = State(numbers, is_in_word, found)
        state.following[character] = following
        return following

    def _at_edge(self, numbers: _Set) -> _Set:
        """Return `numbers` with the edges that may stand here."""
        reached = set(numbers)
        open_ones = [_BEGIN, *numbers]
        while open_ones:
            more = [n for n in self._places[open_ones.pop()].edges if n not in reached]
            reached.update(more)
            open_ones += more
        return frozenset(reached)

    def _taking(self, numbers: _Set, character: str) -> _Set:
        """Return the letters that may follow `numbers` and take a character."""
        taking: set[int] = set()
        for number in (_BEGIN, *numbers):
            place = self._places[number]
            taking.update(place.given.get(character, ()))
            for other in place.classes:
                if self._places[other].letter.matches(character):
                    taking.add(other)
        return frozenset(taking)

    def _found(self, numbers: _Set) -> tuple[int, ...]:
        return tuple(sorted({end for n in numbers for end in self._places[n].ends}))

    def _add_expression(self, number: int, node: Node) -> None:
        """Add a tree; the plain letters that it begins with are shared with those before it."""
        parts = node.parts if isinstance(node, InOrder) else (node,)
        at, taken = _BEGIN, 0
        for part in parts:
            if not isinstance(part, Letter):
                break
            known = self._shared.get((at, part))
            if known is None:
                known = self._shared[at, part] = self._new(part)
                self._link([at], [known])
            at, taken = known, taken + 1
        rest = self._chained(parts[taken:])
        self._link([at], rest.first)
        for last in {at} | rest.last if rest.may_be_empty else rest.last:
            self._places[last].ends.append(number)

    def _new(self, letter: Letter) -> int:
        self._places.append(_Place(letter))
        return len(self._places) - 1

    def _link(self, befores: Iterable[int], afters: Iterable[int]) -> None:
        for before in befores:
            place = self._places[before]
            for after in afters:
                if after in place.known:
                    continue
                place.known.add(after)
                letter = self._places[after].letter
                if letter.is_edge:
                    place.edges.append(after)
                elif letter.only:
                    place.given.setdefault(letter.only, []).append(after)
                else:
                    place.classes.append(after)

    def _add(self, node: Node) -> _Part:
        """Number the letters of a tree."""
        match node:
            case Letter():
                mine = frozenset({self._new(node)})
                return _Part(may_be_empty=False, first=mine, last=mine)
            case InOrder(parts):
                return self._chained(parts)
            case Either(choices):
                added = [self._add(choice) for choice in choices]
                return _Part(
                    may_be_empty=any(part.may_be_empty for part in added),
                    first=frozenset().union(*(part.first for part in added)),
                    last=frozenset().union(*(part.last for part in added)),
                )
            case Repeated(inner, least, most):
                return self._repeated(inner, least, most)

    def _chained(self, nodes: Iterable[Node]) -> _Part:
        whole = _NOTHING
        for node in nodes:
            whole = self._joined(whole, self._add(node))
        return whole

    def _joined(self, one: _Part, other: _Part) -> _Part:
        self._link(one.last, other.first)
        return _Part(
            may_be_empty=one.may_be_empty and other.may_be_empty,
            first=one.first | other.first if one.may_be_empty else one.first,
            last=one.last | other.last if other.may_be_empty else other.last,
        )

    def _repeated(self, inner: Node, least: int, most: int | None) -> _Part:
        """Write a repetition out: (a)(a)(a?)(a?), with the last one again and again if endless."""
        copies = max(1, least) if most is None else most
        whole = _NOTHING
        for copy in range(copies):
            part = self._add(inner)
            if most is None and copy == copies - 1:
                self._link(part.last, part.first)
            is_optional = part.may_be_empty or copy >= least
            whole = self._joined(whole, _Part(is_optional, part.first, part.last))
        return whole
