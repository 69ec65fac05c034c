"""A first `corpus.toml` for an institution's files."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tapestry.config import Settings, commented_toml
from tapestry.data.files import list_files, text_suffix
from tapestry.data.language import SEVERAL, identify
from tapestry.data.reading import read_files
from tapestry.data.sources import CORPUS_FILE, Checks, Filters, Mixing, described
from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_node.home import NodeHome

_FILES_LOOKED_AT = 20
_DOCUMENTS_OF_A_FILE = 20
_SURE = 0.8
"""Share of the documents that were identified, from which on one language is taken for all."""
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "README", "README.md")


class _Tables(Settings):
    checks: Checks = Checks()
    filters: Filters = Filters()
    mixing: Mixing = Mixing()


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a look at a file or folder told."""

    name: str
    path: str
    language: str
    files: int
    size_bytes: int
    kinds: dict[str, int]
    """Files by suffix."""
    languages: dict[str, int]
    """Documents looked at, by language; "" where it was not told."""
    licence_file: str

    @property
    def said(self) -> str:
        """Language and kinds of files in words."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        return f"{self.language} ({kinds})"

    def table(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def describe(path: Path) -> Described:
    """Look at the text at `path`.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    files = list_files([path])
    step = max(1, len(files) // _FILES_LOOKED_AT)
    languages: Counter[str] = Counter()
    for file in files[::step][:_FILES_LOOKED_AT]:
        documents = read_files([file], on_unreadable=lambda *_: None)
        languages.update(
            identify(text) for _file, _line, text in islice(documents, _DOCUMENTS_OF_A_FILE)
        )
    told = Counter({language: n for language, n in languages.items() if language})
    first, count = told.most_common(1)[0] if told else (SEVERAL, 0)
    folder = path if path.is_dir() else path.parent
    return Described(
        name=re.sub(r"[^a-z0-9._-]+", "-", path.resolve().name.split(".")[0].lower()).strip("-._")
        or "text",
        path=str(path.resolve()),
        language=first if count and count >= _SURE * told.total() else SEVERAL,
        files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        kinds=dict(Counter(text_suffix(file) for file in files).most_common()),
        languages=dict(languages),
        licence_file=next((str(folder / n) for n in _LICENCES if (folder / n).is_file()), ""),
    )


def write_description(home: NodeHome, found: list[Described]) -> Path:
    """Write `corpus.toml`; return its path.

    Raises:
        ConfigError: There is one already.
    """
    target = home.folder / CORPUS_FILE
    if target.exists():
        raise ConfigError(f"{target}: exists already: add a [[source]] there, or move it away")
    head = "This node's text, source by source; checked at every start."
    lines = [commented_toml(_Tables(), head=head).rstrip(), ""]
    used: set[str] = set()
    for number, one in enumerate(found):
        name, count = one.name, 2
        while name in used:
            name, count = f"{one.name}-{count}", count + 1
        used.add(name)
        lines += ["", *_source(one, name, with_comments=number == 0)]
    write_atomic(target, "\n".join(lines) + "\n")
    return target


def _source(one: Described, name: str, *, with_comments: bool) -> list[str]:
    """Return the lines of a source; what only people know is empty, which `check` refuses."""
    values = {"name": name, "path": one.path, "language": one.language}
    seen = _in_words(one.languages)
    lines = [f"# {one.files:,} files, {one.size_bytes:,} bytes; some documents looked at: {seen}"]
    if one.licence_file:
        lines.append(f"# licence: perhaps in {one.licence_file}")
    lines.append("[[source]]")
    for key, meaning, default in described():
        if with_comments:
            lines.append(f"# {meaning}")
        value = values.get(key)
        if value is not None:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
        elif key in {"licence", "jurisdiction", "category"}:
            lines.append(f'{key} = ""')
        elif key == "expires":
            lines.append("# expires = 2030-12-31")
        else:
            lines.append(f"# {key} = {json.dumps(default)}")
    return lines


def _in_words(languages: dict[str, int]) -> str:
    said = [f"{language or 'not told'} {count}" for language, count in languages.items()]
    return ", ".join(said) or "no documents"
