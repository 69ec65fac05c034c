"""Where each tensor lies in the parameter vector.

A model's trainable parameters, sorted by name, flattened row-major and concatenated, are one
vector of P float32. Tied parameters appear once, under the first of their names in sorted order
that the model's own file format keeps.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tapestry.errors import RejectedError

FRAGMENT_ELEMENTS = 2**20
"""Elements in a fragment, the unit of everything between institutions; the last is shorter."""

_MAX_TENSORS = 1_000_000


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor's place in the vector; `offset` and `size` count elements."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """The names, shapes and offsets of the P elements of a parameter vector."""

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def from_shapes(cls, shapes: Iterable[tuple[str, Sequence[int]]]) -> "ParameterLayout":
        """Lay out tensors of the given names and shapes, sorted by name, without gaps."""
        tensors, offset = [], 0
        for name, shape in sorted(shapes):
            spec = TensorSpec(name, tuple(shape), offset)
            tensors.append(spec)
            offset += spec.size
        return cls(tuple(tensors))

    @property
    def elements(self) -> int:
        """P, the length of the vector."""
        return self.tensors[-1].offset + self.tensors[-1].size if self.tensors else 0

    @property
    def fragments(self) -> int:
        """Number of fragments the vector is cut into."""
        return math.ceil(self.elements / FRAGMENT_ELEMENTS)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first element of fragment `index` and the one after its last.

        Raises:
            RejectedError: There is no such fragment.
        """
        if not 0 <= index < self.fragments:
            raise RejectedError(
                f"fragment {index} does not exist: the vector of {self.elements:,} elements has "
                f"fragments 0 to {self.fragments - 1}"
            )
        start = index * FRAGMENT_ELEMENTS
        return start, min(start + FRAGMENT_ELEMENTS, self.elements)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over names and shapes: equal digests mean interchangeable vectors."""
        return hashlib.sha256(
            json.dumps(self.to_json(), separators=(",", ":")).encode()
        ).hexdigest()

    def to_json(self) -> list[list[Any]]:
        """Return `[[name, [dim, ...]], ...]` in vector order."""
        return [[spec.name, list(spec.shape)] for spec in self.tensors]

    @classmethod
    def from_json(cls, value: object) -> "ParameterLayout":
        """Read what `to_json` wrote; the value may come from outside.

        Raises:
            RejectedError: It is not a list of names and shapes, sorted and without repetition.
        """
        problem = _problem_with(value)
        if problem is not None:
            raise RejectedError(f"parameter layout: {problem}; expected [[name, [dim, ...]], ...]")
        return cls.from_shapes((name, shape) for name, shape in value)  # type: ignore[attr-defined]


def _problem_with(value: object) -> str | None:
    """Return what is wrong with a layout from outside, or None."""
    if not isinstance(value, list) or not value or len(value) > _MAX_TENSORS:
        return "not a list of tensors"
    for entry in value:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            return f"{entry!r:.60} is not a name and a shape"
        shape = entry[1]
        if not (isinstance(shape, list) and all(type(dim) is int and dim > 0 for dim in shape)):
            return f"{entry[0]!r:.60} has no valid shape"
    names = [entry[0] for entry in value]
    return None if names == sorted(set(names)) else "names are not sorted or not unique"
