"""Questions and texts out of JSON lines and lists: read strictly, all faults named at once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.data.language import language_tag
from tapestry.errors import ConfigError

_MOST_FAULTS = 20
_SHAPES = (
    '{"prompt": "...", "choices": ["...", "..."], "answer": 0}, '
    '{"prompt": "...", "accept": ["..."]} or {"text": "..."}'
)
_TAGS = ("language", "domain")
_FIELDS = frozenset({"prompt", "choices", "answer", "accept", "text", "plain", "id", *_TAGS})


@dataclass(frozen=True)
class ChoiceItem:
    """A question whose right answer must be the likeliest of several."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    plain: bool = False
    """As running text, without the chat template."""


@dataclass(frozen=True)
class ExactItem:
    """A question whose answer must be one of those accepted."""

    prompt: str
    accept: tuple[str, ...]


@dataclass(frozen=True)
class TextItem:
    """A text that is measured in bits per byte."""

    text: str


Item = ChoiceItem | ExactItem | TextItem


@dataclass(frozen=True)
class Suite:
    """Questions of one file."""

    name: str
    items: tuple[Item, ...]
    ids: tuple[str, ...]
    tags: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    text: str
    language: str = ""


def read_suite(path: Path) -> Suite:
    """Return the questions of a file of JSON lines.

    Raises:
        ConfigError: Lines that are no question; the message names up to twenty of them.
    """
    items: list[Item] = []
    ids: list[str] = []
    tags: list[Mapping[str, str]] = []
    faults: list[str] = []
    for number, line in _lines(path):
        try:
            row = _object(line)
            items.append(_item(row))
            tags.append(_tags(row))
            ids.append(str(row.get("id", number)))
        except _BadRowError as error:
            faults.append(f"{path}:{number}: {error}")
    _refuse(faults)
    if not items:
        raise ConfigError(f"{path}: no question; each line looks like {_SHAPES}")
    return Suite(path.stem, tuple(items), tuple(ids), tuple(tags))


def read_prompts(path: Path) -> list[Prompt]:
    """Return prompts: a line each, or JSON lines with "prompt" and maybe "language".

    Raises:
        ConfigError: There is none, or a line cannot be used.
    """
    prompts: list[Prompt] = []
    faults: list[str] = []
    for number, line in _lines(path):
        if path.suffix != ".jsonl":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = _object(line)
            prompts.append(Prompt(_string(row, "prompt"), _tags(row).get("language", "")))
        except _BadRowError as error:
            faults.append(f"{path}:{number}: {error}")
    _refuse(faults)
    if not prompts:
        raise ConfigError(f"{path}: no prompt; write one a line")
    return prompts


class _BadRowError(Exception):
    """A line that is no question, and why."""


def _refuse(faults: list[str]) -> None:
    if faults:
        more = len(faults) - _MOST_FAULTS
        rest = [f"and {more:,} more"] if more > 0 else []
        raise ConfigError("\n".join([*faults[:_MOST_FAULTS], *rest]))


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start:,}; save it as UTF-8") from error
    lines = enumerate(text.split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise _BadRowError(f"not JSON: {cause}; each line looks like {_SHAPES}") from error
    if not isinstance(row, dict):
        raise _BadRowError(f"{type(row).__name__} where an object is expected: {_SHAPES}")
    if unknown := sorted(set(row) - _FIELDS):
        raise _BadRowError(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}")
    return row


def _item(row: dict[str, Any]) -> Item:
    if "text" in row:
        return TextItem(_string(row, "text"))
    if "choices" in row:
        return _choice(row)
    if "accept" in row:
        return ExactItem(_string(row, "prompt"), _strings(row, "accept", fewest=1))
    has = ", ".join(sorted(row)) or "nothing"
    raise _BadRowError(f"neither a question nor a text (it has: {has}); it looks like {_SHAPES}")


def _choice(row: dict[str, Any]) -> ChoiceItem:
    choices = _strings(row, "choices", fewest=2)
    answer = row.get("answer")
    if isinstance(answer, str):
        if answer not in choices:
            raise _BadRowError(f'"answer" is {answer!r:.60}, which is none of the choices')
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise _BadRowError('"answer" must be one of the choices, or its number from 0')
    if not 0 <= answer < len(choices):
        raise _BadRowError(
            f'"answer" is {answer}; with {len(choices)} choices it is 0 to {len(choices) - 1}'
        )
    plain = row.get("plain", False)
    if not isinstance(plain, bool):
        raise _BadRowError('"plain" must be true or false')
    return ChoiceItem(_string(row, "prompt"), choices, answer, plain)


def _string(row: dict[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise _BadRowError(f'"{name}" must be a text that is not empty')
    return text


def _strings(row: dict[str, Any], name: str, *, fewest: int) -> tuple[str, ...]:
    texts = row.get(name)
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise _BadRowError(f'"{name}" must be a list of texts that are not empty')
    if len(set(texts)) < max(fewest, len(texts)):
        raise _BadRowError(f'"{name}" must be {fewest} different texts or more')
    return tuple(texts)


def _tags(row: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in _TAGS:
        if name in row:
            text = _string(row, name)
            found[name] = _language(text) if name == "language" else text
    return found


def _language(text: str) -> str:
    try:
        return language_tag(text)
    except ConfigError as error:
        raise _BadRowError(f'"language": {error}') from error
