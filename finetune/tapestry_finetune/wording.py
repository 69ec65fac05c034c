"""What chat and the local page say, in a file that a community can translate.

`strings/en.toml` is the list of what there is. Another file may leave keys out: English stands in.
"""

import string
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tapestry.config import nearest
from tapestry.errors import ConfigError

_ENGLISH = "en"
_MOST_BYTES = 2**20
_DIRECTIONS = ("ltr", "rtl")


@dataclass(frozen=True, slots=True)
class Wording:
    """The strings of one language."""

    texts: Mapping[str, str]
    """By table and key, as in `chat.help`."""

    def __call__(self, key: str, **values: object) -> str:
        """Return the string `key` with the values put in."""
        return self.texts[key].format(**values)

    @property
    def language(self) -> str:
        """Tag of the language, such as `es`."""
        return self.texts["language.tag"]

    @property
    def direction(self) -> str:
        """`ltr` or `rtl`."""
        return self.texts["language.direction"]

    def table(self, name: str) -> dict[str, str]:
        """Return the strings of one table by key."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.texts.items() if k.startswith(start)}


def shipped_languages() -> list[str]:
    """Return the tags of the languages that come with the program."""
    files = resources.files("tapestry_finetune").joinpath("strings").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_wording(named: str | Path | None = None) -> Wording:
    """Return the strings of a shipped language, or of a file.

    Args:
        named: A tag such as `es`, or a TOML file's path; None: English.

    Raises:
        ConfigError: There is none, it is not TOML, or it has a key or a place for a value that
            English does not have; the message names the nearest.
    """
    english = dict(_flat(tomllib.loads(_shipped(_ENGLISH)), where="en.toml"))
    if named is None or str(named) == _ENGLISH:
        return Wording(english)
    where, text = str(named), _text_of(named)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    given = dict(_flat(table, where=where))
    for key, value in given.items():
        _require_like(key, value, english, where=where)
    return Wording(english | given)


def _text_of(named: str | Path) -> str:
    if str(named) in shipped_languages():
        return _shipped(str(named))
    path = Path(named)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{named}: more than {_MOST_BYTES:,} bytes: not a file of strings")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--strings {named}: neither a file ({error.strerror}) nor one of the languages that "
            f"come with the program: {', '.join(shipped_languages())}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named}: not UTF-8: save it as UTF-8") from error


def _shipped(tag: str) -> str:
    folder = resources.files("tapestry_finetune").joinpath("strings")
    return folder.joinpath(f"{tag}.toml").read_text(encoding="utf-8")


def _flat(table: Mapping[str, Any], *, where: str) -> Iterator[tuple[str, str]]:
    for name, inner in table.items():
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{where}: {name}: stands outside a table such as [chat]")
        for key, value in inner.items():
            if not isinstance(value, str):
                raise ConfigError(f"{where}: {name}.{key}: expected text in quotes")
            yield f"{name}.{key}", value


def _require_like(key: str, value: str, english: Mapping[str, str], *, where: str) -> None:
    """Refuse a string that the program would never show, or could not fill in."""
    if key not in english:
        raise ConfigError(f"{where}: {key}: unknown key; did you mean {nearest(key, english)}?")
    try:
        unknown = _places(value) - _places(english[key])
    except ValueError as error:
        raise ConfigError(f"{where}: {key}: {error}; write {{{{ for a brace") from error
    if unknown:
        places = ", ".join(f"{{{place}}}" for place in sorted(_places(english[key]))) or "none"
        raise ConfigError(
            f"{where}: {key}: nothing is put in for {{{sorted(unknown)[0]}}}; there is: {places}"
        )
    if key == "language.direction" and value not in _DIRECTIONS:
        raise ConfigError(f"{where}: {key}: {value!r}; write {' or '.join(_DIRECTIONS)}")


def _places(text: str) -> set[str]:
    return {name for _text, name, _spec, _conversion in string.Formatter().parse(text) if name}
