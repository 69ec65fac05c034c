"""Settings that people write: strict TOML into frozen pydantic models, with one-line errors."""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tapestry.errors import ConfigError

_MOST_CHARACTERS = 80
"""Of a key, in a message."""
_MOST_FAULTS = 10
_SHOULD = re.compile("^(Input|String|Value) should")
_QUOTED = re.compile(r"'([^']+)'")

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """What a person writes in TOML: frozen, units in names, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def load_settings(path: Path, model: type[SettingsT]) -> SettingsT:
    """Read the TOML file at `path` as `model`.

    Raises:
        ConfigError: The file is missing, not TOML, or has a key or value that `model` refuses;
            the message names file, key, and the nearest valid key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, not UTF-8, endless digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return parse_settings(table, model, where=str(path))


def parse_settings(table: dict[str, Any], model: type[SettingsT], *, where: str) -> SettingsT:
    """Return `table` as `model`; a refusal has a line for each fault, which starts with `where`."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        lines = [f"{where}: {_said(fault, model)}" for fault in faults[:_MOST_FAULTS]]
        if len(faults) > _MOST_FAULTS:
            lines.append(f"and {len(faults) - _MOST_FAULTS} more")
        raise ConfigError("\n".join(lines)) from error


def _said(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what is wrong, in a line that starts with the key."""
    loc = [str(part)[:_MOST_CHARACTERS] for part in fault["loc"]]
    said = plainly(fault)[: 10 * _MOST_CHARACTERS]
    if not loc:
        return said
    place = "".join(
        f" (number {part + 1})" if isinstance(part, int) else f".{name}" if number else name
        for number, (part, name) in enumerate(zip(fault["loc"], loc, strict=True))
    )
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown key; did you mean {nearest(loc[-1], _keys_beside(model, loc))}?"
    if fault["type"] == "missing":
        return f"{place}: missing"
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        known = _QUOTED.findall(fault["ctx"]["expected"])
        return f"{place}: {said}; did you mean {nearest(fault['input'], known)}?" if known else said
    return f"{place}: {said}"


def plainly(fault: ErrorDetails) -> str:
    """Return what pydantic says of a value, as words that may follow the value's name."""
    if fault["type"] == "string_too_short" and not fault["input"]:
        return "is empty: fill it in"
    return _SHOULD.sub("has to", fault["msg"].removeprefix("Value error, "))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return which of the `known` names, of which there is one at least, is most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _keys_beside(model: type[BaseModel], loc: list[str]) -> list[str]:
    """Return the keys that are valid where the last part of `loc` stands."""
    for part in loc[:-1]:
        field = model.model_fields.get(part)  # None: a number in a list, a key of a mapping
        annotation = None if field is None else field.annotation
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return sorted(model.model_fields)


def _inline(value: object) -> str:
    """Return a value as TOML on one line; of a table inside a value, what is not the default."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(name)} = {_inline(one)}" for name, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"_": value}).strip().removeprefix("_ = ")


def commented_toml(
    settings: Settings, *, head: str, keys: Mapping[str, Collection[str]] | None = None
) -> str:
    """Return settings, a model of tables, as TOML with each key's docstring above it.

    Args:
        settings: To be written.
        head: The comment that it begins with.
        keys: By table, the keys to write; those of no table here are left out. None: all.
    """
    lines = [f"# {head}", ""]
    for table_name in type(settings).model_fields if keys is None else keys:
        table: Settings = getattr(settings, table_name)
        lines += [f"# {(type(table).__doc__ or '').strip()}", f"[{table_name}]"]
        for key, info in type(table).model_fields.items():
            if keys is not None and key not in keys[table_name]:
                continue
            if info.description:
                lines.append(f"# {' '.join(info.description.split())}")
            value = getattr(table, key)
            lines.append(f"# {key} =" if value is None else f"{key} = {_inline(value)}")
        lines.append("")
    return "\n".join(lines)
