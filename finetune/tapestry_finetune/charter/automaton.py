"""All expressions of a charter at once, over a text, in one pass.

The letters of all expressions are numbered; a set of them, as the bits of an integer, is where a
match may be by now. A state is such a set (Glushkov's automaton); what follows from a state and a
character is worked out once and kept. So the time is linear in the text, whatever the expressions
are, and a text can come in pieces. An edge of a word is a letter that takes no character: it may
stand wherever not two letters of a spaced script meet.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tapestry_finetune.charter.folding import is_letter
from tapestry_finetune.charter.patterns import Either, InOrder, Letter, Node, Repeated

_MOST_STATES = 20_000
"""Kept; then they are forgotten, and worked out anew."""


@dataclass(slots=True, eq=False)
class State:
    """Where matches may be after what was read."""

    bits: int
    """Of the letters read last, in matches that have begun."""
    is_in_word: bool
    """Whether the last character was a letter."""
    found: tuple[int, ...] = ()
    """Numbers of the expressions that match here."""
    following: dict[str, "State"] = field(default_factory=dict)

    @property
    def is_quiet(self) -> bool:
        """Whether no match has begun: what was read can be in none."""
        return self.bits == 0


class Automaton:
    """Finds expressions in folded text."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        """Look for `nodes`; they are counted from 0."""
        self._letters: list[Letter] = []
        self._follow: list[int] = []
        self._first = 0
        self._last: dict[int, int] = {}
        for number, node in enumerate(nodes):
            _is_empty, first, last = self._add(node)
            self._first |= first
            for bit in _bits(last):
                self._last[bit] = number
        self._lasts = sum(1 << bit for bit in self._last)
        self._edges = sum(1 << bit for bit, one in enumerate(self._letters) if one.is_edge)
        self._given: dict[str, int] = {}
        for bit, one in enumerate(self._letters):
            if one.only:
                self._given[one.only] = self._given.get(one.only, 0) | 1 << bit
        self._classes = [
            (bit, one) for bit, one in enumerate(self._letters) if not one.only and not one.is_edge
        ]
        self._matching: dict[str, int] = {}
        self._states: dict[tuple[int, bool, tuple[int, ...]], State] = {}
        self.start = State(0, is_in_word=False)
        """Before the first character."""

    def after(self, state: State, character: str) -> State:
        """Return the state after one more character."""
        following = state.following.get(character)
        return following if following is not None else self._step(state, character)

    def at_end(self, state: State) -> tuple[int, ...]:
        """Return the numbers of the expressions that match because the text ends here."""
        return self._found(self._at_edge(state.bits) & ~state.bits)

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
        before = state.bits
        if not (state.is_in_word and is_in_word):
            before = self._at_edge(before)
        bits = self._reached(before) & self._matching_bits(character)
        found = self._found((before & ~state.bits) | bits)
        if len(self._states) >= _MOST_STATES:
            self._states.clear()
            self.start.following.clear()
            state.following.clear()
        key = (bits, is_in_word, found)
        following = self._states.get(key)
        if following is None:
            following = self._states[key] = State(bits, is_in_word, found)
        state.following[character] = following
        return following

    def _at_edge(self, bits: int) -> int:
        """Return `bits` with the edges that may stand here."""
        if not self._edges:
            return bits
        while (more := bits | (self._reached(bits) & self._edges)) != bits:
            bits = more
        return bits

    def _reached(self, bits: int) -> int:
        reached = self._first
        for bit in _bits(bits):
            reached |= self._follow[bit]
        return reached

    def _matching_bits(self, character: str) -> int:
        known = self._matching.get(character)
        if known is None:
            known = self._given.get(character, 0)
            for bit, one in self._classes:
                if one.matches(character):
                    known |= 1 << bit
            if len(self._matching) < _MOST_STATES:
                self._matching[character] = known
        return known

    def _found(self, bits: int) -> tuple[int, ...]:
        return tuple(sorted({self._last[bit] for bit in _bits(bits & self._lasts)}))

    def _add(self, node: Node) -> tuple[bool, int, int]:
        """Number the letters of a tree; return whether it may be empty, its first and last ones."""
        match node:
            case Letter():
                bit = 1 << len(self._letters)
                self._letters.append(node)
                self._follow.append(0)
                return False, bit, bit
            case InOrder(parts):
                return self._chained(parts)
            case Either(choices):
                added = [self._add(choice) for choice in choices]
                first = last = 0
                for _is_empty, firsts, lasts in added:
                    first, last = first | firsts, last | lasts
                return any(is_empty for is_empty, _first, _last in added), first, last
            case Repeated(inner, least, most):
                return self._repeated(inner, least, most)

    def _chained(self, parts: Iterable[Node]) -> tuple[bool, int, int]:
        is_empty, first, last = True, 0, 0
        for part in parts:
            is_part_empty, firsts, lasts = self._add(part)
            for bit in _bits(last):
                self._follow[bit] |= firsts
            first |= firsts if is_empty else 0
            last = lasts | (last if is_part_empty else 0)
            is_empty = is_empty and is_part_empty
        return is_empty, first, last

    def _repeated(self, inner: Node, least: int, most: int | None) -> tuple[bool, int, int]:
        """Write a repetition out: (a)(a)(a?)(a?), with the last one again and again if endless."""
        copies = max(1, least) if most is None else most
        is_empty, first, last = True, 0, 0
        for copy in range(copies):
            is_copy_empty, firsts, lasts = self._add(inner)
            for bit in _bits(last):
                self._follow[bit] |= firsts
            if most is None and copy == copies - 1:
                for bit in _bits(lasts):
                    self._follow[bit] |= firsts
            is_copy_empty = is_copy_empty or copy >= least
            first |= firsts if is_empty else 0
            last = lasts | (last if is_copy_empty else 0)
            is_empty = is_empty and is_copy_empty
        return is_empty, first, last


def _bits(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
