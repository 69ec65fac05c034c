"""The shapes in which people keep rows, and which of them a file has.

| shape             | fields                                                             |
|-------------------|--------------------------------------------------------------------|
| messages          | `messages`: a list of `role` and `content`                         |
| sharegpt          | `conversations`: a list of `from` and `value`; perhaps `system`    |
| alpaca            | `instruction`, `output`; perhaps `input`, `system`, `history`      |
| prompt            | `prompt`, `completion`: text, or messages; perhaps `system`        |
| pairs             | `chosen`, `rejected`, and `prompt` unless it stands in both        |
| thumbs            | `prompt`, `completion`, `label` (true or false, good or bad, 1, 0) |
| text              | `text`                                                             |
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapestry.config import nearest
from tapestry.errors import ConfigError
from tapestry_finetune.rows.faults import quoted
from tapestry_finetune.rows.kinds import ROLES, Kind


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to write rows."""

    name: str
    label: str
    """For sentences: "read 12 rows as ..."."""
    kind: Kind
    needs: tuple[str, ...]
    may_have: tuple[str, ...] = ()


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("thumbs", "thumbs", "thumbs", ("prompt", "completion", "label"), ("system",)),
        Shape("pairs", "pairs of answers", "pairs", ("chosen", "rejected"), ("prompt", "system")),
        Shape("messages", "messages", "chat", ("messages",)),
        Shape("sharegpt", "ShareGPT", "chat", ("conversations",), ("system",)),
        Shape(
            "alpaca", "Alpaca", "chat", ("instruction", "output"), ("input", "system", "history"),
        ),
        Shape(
            "prompt", "prompt and completion", "chat", ("prompt", "completion"),
            ("system",),
        ),
        Shape("text", "text", "text", ("text",)),
    )
}  # fmt: skip
"""In the order in which they are tried: the more fields, the earlier."""

FIELDS = tuple(dict.fromkeys(f for s in SHAPES.values() for f in (*s.needs, *s.may_have)))
LICENCE_FIELDS = ("licence", "license")

_ALSO_CALLED = {
    "completion": ("response", "answer"),
    "prompt": ("question",),
    "output": ("response",),
    "input": ("context",),
    "conversations": ("conversation",),
}
"""Names that are taken for a field where the field itself is missing."""

_GOOD = frozenset(("true", "1", "1.0", "+1", "yes", "good", "up", "thumbs_up", "like", "👍"))
_BAD = frozenset(("false", "0", "0.0", "-1", "no", "bad", "down", "thumbs_down", "dislike", "👎"))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a person says about the files, where the files do not say it themselves."""

    shape: str | None = None
    roles: Mapping[str, str] | None = None
    """Names of roles in the files, for ours."""
    columns: Mapping[str, str] | None = None
    """Names of fields in the files, for ours."""

    def __post_init__(self) -> None:
        """Refuse a shape, a field or a role that is none.

        Raises:
            ConfigError: With the nearest that there is.
        """
        if self.shape is not None and self.shape not in SHAPES:
            raise ConfigError(
                f"shape = {quoted(self.shape)}: no such shape; did you mean "
                f"{nearest(self.shape, list(SHAPES))}? There are: {', '.join(SHAPES)}"
            )
        for theirs, ours in (self.columns or {}).items():
            if ours not in FIELDS:
                raise ConfigError(
                    f"columns: {theirs} = {quoted(ours)}: no such field; did you mean "
                    f"{nearest(ours, FIELDS)}? Write the file's name first: "
                    '{ question = "prompt" }'
                )
        for theirs, ours in (self.roles or {}).items():
            if ours not in ROLES:
                raise ConfigError(
                    f"roles: {theirs} = {quoted(ours)}: no such role; did you mean "
                    f'{nearest(ours, ROLES)}? Write the file\'s name first: {{ bot = "assistant" }}'
                )


def renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row's fields under our names."""
    return (
        {columns.get(key, key): value for key, value in fields.items()} if columns else {**fields}
    )


def completed(fields: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Return fields with those of `shape` that stand under another usual name."""
    for field in (*shape.needs, *shape.may_have):
        if field not in fields:
            other = next((name for name in _ALSO_CALLED.get(field, ()) if name in fields), None)
            if other is not None:
                fields = {**fields, field: fields[other]}
    return fields


def shape_of(fields: dict[str, Any]) -> Shape | None:
    """Return the first shape that a row has all fields of."""
    for shape in SHAPES.values():
        full = completed(fields, shape)
        if all(field in full for field in shape.needs) and _has_thumb(full, shape):
            return shape
    return None


def thumb_of(label: object) -> bool | None:
    """Return whether a label says that an answer is good; None if it is no such label."""
    word = str(label).strip().lower()
    return word in _GOOD if word in _GOOD | _BAD else None


def _has_thumb(fields: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the field `label`, which may mean anything, is a thumb."""
    return shape.name != "thumbs" or thumb_of(fields["label"]) is not None


def shape_of_most(rows: Sequence[dict[str, Any]]) -> Shape | None:
    """Return the shape that most of `rows` have; None if none has any."""
    found = Counter(shape.name for row in rows if (shape := shape_of(row)) is not None)
    return SHAPES[found.most_common(1)[0][0]] if found else None


def not_recognized(rows: Sequence[dict[str, Any]], *, is_table: bool) -> str:
    """Return what to say of a file whose shape nobody can tell."""
    wraps = next((key for row in rows for key, value in row.items() if _are_rows(value)), None)
    if len(rows) == 1 and wraps is not None:
        return f"the rows are inside the field {quoted(str(wraps))}: save that list alone"
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    has = ", ".join(map(quoted, names[:8])) or "nothing"
    known = "; ".join(" + ".join(map(_with_others, shape.needs)) for shape in SHAPES.values())
    nearly = _nearest_shape(rows)
    meant: dict[str, str] = {}
    if nearly is not None:
        shape, missing = nearly
        lacks = " and no field ".join(map(quoted, missing))
        first = (
            f"looks like {shape.label}, but there is no field {lacks} (there are: {has}). Rename it"
        )
        meant[next((name for name in names if name not in FIELDS), "yours")] = missing[0]
    elif is_table:
        first = (
            f"the first line must name the columns, and no name is known (it has: {has}). Put "
            "a line with names above it; or, where those are names, replace them"
        )
    else:
        first = f"rows of no known shape (fields: {has}). Rename fields"
    meant = {quoted(key)[1:-1]: ours for key, ours in (meant or _at_a_guess(rows)).items()}
    options = " ".join(f"--column {_for_a_shell(f'{key}={ours}')}" for key, ours in meant.items())
    keys = ", ".join(f'"{key}" = "{ours}"' for key, ours in meant.items())
    return (
        f"{first}, or say what they mean: {options} (in a recipe: data.columns = "
        f"{{ {keys} }}). Known are {known}"
    )


def _for_a_shell(text: str) -> str:
    return text if re.fullmatch(r"[\w=.-]+", text) else shlex.quote(text)


def _at_a_guess(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return what fields of unknown names could be: those with the most text, in their order."""
    letters: Counter[str] = Counter()
    for row in rows:
        letters.update({str(k): len(v) for k, v in row.items() if isinstance(v, str)})
    most = {name for name, count in letters.most_common(2) if count}
    named = [name for name in letters if name in most] or ["yours"]
    ours = ("text",) if len(named) == 1 else ("prompt", "completion")
    return dict(zip(named, ours, strict=True))


def _with_others(field: str) -> str:
    """Return a field's name, with those that are taken for it."""
    others = _ALSO_CALLED.get(field, ())
    return f"{field} (or {' or '.join(others)})" if others else field


def _nearest_shape(rows: Sequence[dict[str, Any]]) -> tuple[Shape, list[str]] | None:
    """Return the shape that the first row lacks the fewest fields of, and those fields."""
    lacking = [
        (shape, [field for field in shape.needs if field not in completed(rows[0], shape)])
        for shape in SHAPES.values()
    ]
    partly = [(shape, missing) for shape, missing in lacking if len(missing) < len(shape.needs)]
    return min(partly, key=lambda one: len(one[1]), default=None)


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
