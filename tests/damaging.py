"""Valid bytes made wrong, for readers of what comes from outside.

Mutations of something valid reach deeper than noise: flipped bits, cuts, pieces twice or in another
order; and in JSON and TOML, where the text stays well-formed, values that no writer would write.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import tomli_w
from hypothesis import strategies as st

from tapestry.errors import TapestryError

DEEP = 20_000
RAW = {
    "deep list": "[" * DEEP + "]" * DEEP,
    "deep table": '{"a":' * DEEP + "1" + "}" * DEEP,
    "unclosed": "[" * DEEP,
    "many digits": "9" * 5000,
    "huge": "1" + "0" * 400,
    "infinite": "1e999",
    "not a number": "NaN",
    "surrogate": '"\\ud800"',
    "twice": '{"a": 1, "a": 2}',
}
"""JSON that is put in a value's place as it stands."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 2**63, 2**64, -(2**63), 1e300, -1e300, 1e-320, 0.5, "", "x",
    "0" * 64, "f" * 64, "a" * 20_000, "../../etc/passwd", "/etc/passwd", "\x00", "é", "\u2028", [],
    {}, [[]], [None], [0] * 100, {"a": 0}, {"": {}},
)  # fmt: skip
_MARK = "\x00raw:"

Path = tuple[str | int, ...]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` after one to three mishaps."""
    data = valid
    for _mishap in range(draw(st.integers(1, 3))):
        if not data:
            break
        place = st.integers(0, len(data))
        begin, end = sorted((draw(place), draw(place)))
        piece = data[begin:end]
        match draw(st.sampled_from(["flip", "cut", "drop", "twice", "turn", "noise", "lengthen"])):
            case "flip":
                data = flipped(data, draw(st.integers(0, 8 * len(data) - 1)))
            case "cut":
                data = data[:begin]
            case "drop":
                data = data[:begin] + data[end:]
            case "twice":
                data = data[:end] + piece + data[end:]
            case "turn":
                data = data[end:] + piece + data[:begin]
            case "noise":
                data = data[:begin] + draw(st.binary(min_size=1, max_size=40)) + data[begin:]
            case "lengthen":
                data = data[:begin] + data[begin : begin + 1] * 3000 + data[begin:]
    return data


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from places(one, (*path, index))


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


@st.composite
def changed(draw: st.DrawFn, valid: Any, *, raw: bool = True) -> Any:
    """A copy of a JSON value with something else in one or two places."""
    value = json.loads(json.dumps(valid))
    for _change in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            continue
        holder, last = _at(value, path[:-1]), path[-1]
        match draw(st.sampled_from(["value", "raw", "remove", "double", "turn", "borrow"])):
            case "raw" if raw:
                holder[last] = _MARK + draw(st.sampled_from(list(RAW)))
            case "remove":
                del holder[last]
            case "double" if isinstance(holder[last], list):
                holder[last] = holder[last] * 2
            case "turn" if isinstance(holder[last], list):
                holder[last] = holder[last][::-1]
            case "borrow":
                borrowed = _at(value, draw(st.sampled_from(list(places(value)))))
                holder[last] = json.loads(json.dumps(borrowed))
            case _:
                holder[last] = draw(st.sampled_from(VALUES))
    return value


def text_of(value: Any) -> bytes:
    """A changed value as JSON, with what was to be put in as it stands."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    for name, raw in RAW.items():
        text = text.replace(json.dumps(_MARK + name), raw)
    return text.encode()


def damaged_json(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON text that means something else than `valid`, or nothing."""
    text = json.dumps(valid, sort_keys=True, separators=(",", ":")).encode()
    return changed(valid).map(text_of) | damaged(text)


def damaged_toml(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """TOML text that means something else than `valid`, or nothing."""
    text = tomli_w.dumps(valid).encode()
    deep = st.sampled_from([b"x = " + b"[" * DEEP, b"x = " + b"9" * 5000, b"x = 1e999", b"\xff"])
    return changed(valid, raw=False).map(_toml) | damaged(text) | deep


def _toml(value: dict[str, Any]) -> bytes:
    try:
        return tomli_w.dumps(value).encode()
    except (TypeError, ValueError):  # a null, which TOML has not
        return repr(value).encode()


def answered(read: Callable[[], object]) -> TapestryError | None:
    """Read: what is wrong is refused by an error of ours, in one readable message, or is right."""
    refusal = None
    try:
        read()
    except TapestryError as error:
        refusal = error
    assert refusal is None or 0 < len(str(refusal).strip()) < 4000, "a message repeats what came"
    return refusal
