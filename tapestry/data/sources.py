"""`corpus.toml`: what an institution says about its text, source by source.

Everything that is wrong with the file is said at once, each with its line.
"""

import glob
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tapestry.config import Settings, nearest, plainly
from tapestry.data.categories import Category
from tapestry.data.files import list_files
from tapestry.data.language import language_tag
from tapestry.errors import ConfigError

CORPUS_FILE = "corpus.toml"


_NEEDS_CONSENT = frozenset({Category.CONTROLLED, Category.PRIVATE})


def _tag(text: str) -> str:
    try:
        return language_tag(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error


class SourceTable(Settings):
    """One source of text."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Its name in reports and in the history: small letters, digits, `.`, `_`, `-`."""
    path: Annotated[str, Field(min_length=1)]
    """A file, a folder, or a pattern such as `letters/**/*.txt`; from this file's folder."""
    language: Annotated[str, AfterValidator(_tag)]
    """A language tag such as `fra`; `mul` to have each document identified."""
    licence: Annotated[str, Field(min_length=1)]
    """An SPDX identifier, or in words."""
    jurisdiction: Annotated[str, Field(min_length=1)]
    """Whose law holds for it: a country code, or in words."""
    category: Category
    """open, unique-open, controlled, sovereign or private."""
    consent: str = ""
    """Where the consent or the agreement is on file; controlled and private text needs one."""
    expires: date | None = None
    """Last day on which it may be used."""
    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    """How often it is drawn beside other sources in its language, for its size."""

    @model_validator(mode="after")
    def _has_consent(self) -> Self:
        if self.category in _NEEDS_CONSENT and not self.consent.strip():
            raise ValueError(
                f"category {self.category} needs a consent: say where the consent or the "
                "agreement is on file"
            )
        return self


class Checks(Settings):
    """What happens to a source that cannot be used."""

    on_expired: Literal["leave-out", "refuse"] = "leave-out"
    """A consent that has expired: leave the source out, or refuse to start."""
    on_missing: Literal["leave-out", "refuse"] = "refuse"
    """A path that is not there."""


class Filters(Settings):
    """Which documents are left out."""

    duplicates: Literal["near", "exact", "keep"] = "near"
    """Remove near-duplicates too, only exact ones, or none. The first is kept."""
    similarity: Annotated[FiniteFloat, Field(ge=0.5, lt=1)] = 0.8
    """From which share of common passages (Jaccard) on two documents are near-duplicates."""
    min_characters: Annotated[int, Field(ge=1)] = 1
    """Shorter documents are left out."""
    max_characters: Annotated[int, Field(ge=1)] = 65_536
    """Longer documents are left out. What is longer than 65,536 is cut before it comes here."""
    wrong_language: Literal["drop", "keep"] = "drop"
    """What is surely in another language than its source says."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Bytes that are not UTF-8, broken JSON lines, rows without text: refuse to start, or leave
    that document out."""


class Mixing(Settings):
    """How often each language is drawn."""

    languages: Literal["proportional", "unimax"] = "proportional"
    """By size, or as evenly as `max_epochs` lets (UniMax, arXiv 2304.09151)."""
    max_epochs: Annotated[FiniteFloat, Field(ge=1)] = 4.0
    """unimax: no language is repeated more often than this within the budget."""
    budget_tokens: Annotated[int, Field(ge=0)] = 0
    """unimax: tokens that you expect to train on in all; 0: as many as the corpus has."""


class CorpusTable(Settings):
    """The whole file."""

    checks: Checks = Checks()
    filters: Filters = Filters()
    mixing: Mixing = Mixing()
    source: Annotated[tuple[SourceTable, ...], Field(min_length=1)]


PLAIN = Filters(duplicates="keep", wrong_language="keep")
"""Of text that is given as bare paths: nothing is left out."""


BY_SIZE = Mixing()
"""Nothing is drawn more often than its size says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source that is used."""

    name: str
    paths: tuple[Path, ...]
    language: str = ""
    """"" where nobody has said."""
    category: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSpec:
    """What a corpus is made of."""

    sources: tuple[Source, ...]
    filters: Filters = PLAIN
    mixing: Mixing = BY_SIZE
    left_out: tuple[LeftOut, ...] = ()
    origin: str = ""
    """Which corpus this is, whatever its sources' state: the file that describes it, or its paths;
    packed copies of its earlier states go when a new one is packed."""

    def files(self) -> list[tuple[int, Path]]:
        """Return the files with the number of their source, each once, in a fixed order.

        Raises:
            ConfigError: A path cannot be read, or there is no text at all.
        """
        seen: set[Path] = set()
        found = [
            (number, file)
            for number, source in enumerate(self.sources)
            for file in sorted(list_files(source.paths, seen=seen), key=Path.resolve)
        ]
        if not found:
            list_files([path for source in self.sources for path in source.paths])
        return found

    def without(self, names: Sequence[str], *, reason: str) -> Self:
        """Return this corpus without some sources."""
        return replace(
            self,
            sources=tuple(one for one in self.sources if one.name not in names),
            left_out=(
                *self.left_out,
                *(LeftOut(one.name, reason) for one in self.sources if one.name in names),
            ),
        )

    def require_text(self, where: str) -> None:
        """Refuse a corpus without sources.

        Raises:
            ConfigError: Every source is left out.
        """
        if not self.sources:
            why = "; ".join(f"{one.name}: {one.reason}" for one in self.left_out)
            raise ConfigError(f"{where}: no source is left to train on ({why})")


def plain_spec(paths: Sequence[Path]) -> CorpusSpec:
    """Return the corpus of bare paths: a source each, called as the file or folder."""
    sources: list[Source] = []
    in_order = sorted(paths, key=Path.resolve)
    for path in in_order:
        name, names = path.resolve().name, {one.name for one in sources}
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        sources.append(Source(name=unique, paths=(path,)))
    origin = "\n".join(str(path.resolve()) for path in in_order)
    return CorpusSpec(sources=tuple(sources), origin=origin)


def as_spec(text: "CorpusSpec | Sequence[Path]") -> CorpusSpec:
    """Return `text` as a corpus, whichever way it is given."""
    return text if isinstance(text, CorpusSpec) else plain_spec(text)


def read_table(path: Path) -> CorpusTable:
    """Read a `corpus.toml`.

    Raises:
        ConfigError: The file cannot be read, or something in it cannot be used: all of that, each
            with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    places = _Places(text)
    faults: list[tuple[int, str]] = []
    try:
        parsed = CorpusTable.model_validate(table)
    except ValidationError as error:
        faults = [
            places.fault(one)
            for one in error.errors()
            if not (one["type"] == "too_short" and table.get("source"))  # said one by one
        ]
        raise _refusal(path, faults) from error
    names: dict[str, int] = {}
    for number, source in enumerate(parsed.source):
        if source.name in names:
            line = places.line(["source", number, "name"])
            faults.append((line, f"source {source.name}: another source has this name: change one"))
        names[source.name] = number
    if faults:
        raise _refusal(path, faults)
    return parsed


def load_corpus(path: Path, *, today: date) -> CorpusSpec:
    """Read a `corpus.toml` and find out which of its sources can be used.

    Args:
        path: The file; its sources' paths are relative to its folder.
        today: Consents that end before this day have expired.

    Raises:
        ConfigError: Something in it cannot be used; all of that is said.
    """
    table = read_table(path)
    places = _Places(path.read_text(encoding="utf-8"))
    faults: list[tuple[int, str]] = []
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    for number, one in enumerate(table.source):
        found = _resolve(path.parent, one.path)
        verdicts = []
        if one.expires is not None and one.expires < today:
            verdicts.append(("expires", table.checks.on_expired, f"expired on {one.expires}"))
        if not found:
            verdicts.append(("path", table.checks.on_missing, f"nothing is at {one.path}"))
        refused = [(key, said) for key, rule, said in verdicts if rule == "refuse"]
        for key, said in refused:
            line = places.line(["source", number, key])
            how = f'checks.on_{"expired" if key == "expires" else "missing"} = "leave-out"'
            faults.append((line, f"source {one.name}: {said}; {how} would leave it out"))
        if verdicts and not refused:
            left_out.append(LeftOut(one.name, verdicts[0][2]))
        elif not verdicts:
            sources.append(
                Source(
                    name=one.name,
                    paths=found,
                    language=one.language,
                    category=one.category,
                    weight=one.weight,
                )
            )
    if faults:
        raise _refusal(path, faults)
    return CorpusSpec(
        sources=tuple(sources),
        filters=table.filters,
        mixing=table.mixing,
        left_out=tuple(left_out),
        origin=str(path.resolve()),
    )


def _resolve(folder: Path, path: str) -> tuple[Path, ...]:
    """Return what a source's path or pattern leads to."""
    plain = folder / Path(path).expanduser()
    if plain.exists() or not glob.has_magic(path):
        return (plain,) if plain.exists() else ()
    found = glob.glob(path, root_dir=folder, recursive=True)  # noqa: PTH207 - may be absolute
    return tuple(folder / one for one in sorted(found))


def _refusal(path: Path, faults: list[tuple[int, str]]) -> ConfigError:
    lines = [f"{path}:{line}: {said}" for line, said in sorted(faults)]
    count = f"\n{len(lines)} faults; nothing was started" if len(lines) > 1 else ""
    return ConfigError("\n".join(lines) + count)


class _Places:
    """Where the keys of a `corpus.toml` stand in its text."""

    def __init__(self, text: str) -> None:
        self._tables: dict[tuple[str | int, ...], int] = {}
        self._keys: dict[tuple[str | int, ...], int] = {}
        self._names: dict[int, str] = {}
        table: tuple[str | int, ...] = ()
        sources = 0
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w-]+)\s*\]", line):
                name = header[2]
                is_source = header[1] == "[["
                table = (name, sources) if is_source else (name,)
                sources += is_source
                self._tables.setdefault(table, number)
            elif key := re.match(r"""\s*["']?([\w-]+)["']?\s*=\s*(?:["'](.*?)["'])?""", line):
                self._keys.setdefault((*table, key[1]), number)
                if key[1] == "name" and len(table) == 2:
                    self._names[int(table[1])] = key[2] or ""

    def line(self, loc: Sequence[str | int]) -> int:
        """Return the line of a key, else of its table, else 1."""
        place = tuple(loc[:3] if loc[:1] == ["source"] else loc[:2])
        for table in (place, place[:-1]):
            if (found := self._keys.get(table) or self._tables.get(table)) is not None:
                return found
        return 1

    def fault(self, error: ErrorDetails) -> tuple[int, str]:
        """Return one of pydantic's errors as a line of the file and a sentence."""
        loc = list(error["loc"])
        said = plainly(error)
        keys = [str(part) for part in loc if isinstance(part, str) and part != "source"]
        what = ".".join(keys)
        if len(loc) > 1 and loc[0] == "source":
            name = self._names.get(int(loc[1]))
            what = f"source {name or f'number {int(loc[1]) + 1}'}: {what}"
        elif loc == ["source"]:
            what = "source"
            if error["type"] in {"missing", "too_short"}:
                said = "none: add a [[source]] table; `tapestry node corpus init PATH` writes one"
        if error["type"] == "missing" and loc != ["source"]:
            said = "is missing"
        if error["type"] == "extra_forbidden":
            said = f"unknown key; did you mean {nearest(str(loc[-1]), _valid_keys(loc))}?"
        return self.line(loc), f"{what}: {said}" if not what.endswith(": ") else f"{what}{said}"


def _valid_keys(loc: Sequence[str | int]) -> list[str]:
    models: dict[str, type[Settings]] = {
        "source": SourceTable, "checks": Checks, "filters": Filters, "mixing": Mixing,
    }  # fmt: skip
    model = models.get(str(loc[0]), CorpusTable) if len(loc) > 1 else CorpusTable
    return sorted(model.model_fields)


def described() -> Iterator[tuple[str, str, Any]]:
    """Yield key, meaning and default of what stands in a source's table."""
    for key, info in SourceTable.model_fields.items():
        yield key, " ".join((info.description or "").split()), info.default
