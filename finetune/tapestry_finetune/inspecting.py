"""What `tapestry finetune init` sees in people's files, and which stages that suggests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestry.data.language import UNKNOWN
from tapestry_finetune.base import Base
from tapestry_finetune.doctor import (
    LITTLE_TEXT_BYTES,
    Amount,
    advice_on_amounts,
    amounts,
    few_tokens,
    token_counter,
)
from tapestry_finetune.rows.cost import Cost, cost_of, english
from tapestry_finetune.rows.kinds import Kind, Row
from tapestry_finetune.rows.licences import licences_of
from tapestry_finetune.rows.looking import learnt_text, main_language, shares_of, tags_of
from tapestry_finetune.rows.reading import FileRows, OnProgress, read_files
from tapestry_finetune.rows.shapes import Reading

_NAMED = 3
_STAGE_OF: dict[Kind, str] = {
    "text": "language",
    "chat": "instruct",
    "pairs": "values",
    "thumbs": "values",
}


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """One file with rows."""

    path: Path
    kind: Kind
    shape: str
    rows: int
    bytes: int
    """Of its text, uncompressed."""
    language: str
    """ISO 639-3 of the language with the most text; `und` if none can be told."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the files are, and what could be made of them."""

    files: list[InspectedFile]
    kinds: dict[Kind, Amount]
    language: str
    stages: tuple[str, ...]
    """In their order: vocab (only if a base was given, and it hardly knows the script), language,
    instruct, values."""
    method: str
    """What the amount of text advises: lora, lora+embeddings or full."""
    cost: Cost | None
    """What the language costs with the base's tokenizer."""
    advice: list[str]

    def files_of(self, *kinds: Kind) -> list[Path]:
        """Return the files of some kinds."""
        return [file.path for file in self.files if file.kind in kinds]


def inspect(
    paths: Sequence[Path],
    *,
    base: Base | None = None,
    reading: Reading | None = None,
    skip_bad: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Inspection:
    """Read all files and say what they are.

    Args:
        paths: Files and folders.
        base: What is to be localized.
        reading: What a person says about the files.
        skip_bad: A file that bad rows are moved to; None refuses them.
        on_progress: Told how far the reading is.

    Raises:
        RowFaults: Something is wrong with the files; all of it is named.
        ConfigError: A path cannot be read.
    """
    found = read_files(paths, reading, skip_bad=skip_bad, on_progress=on_progress)
    files: list[InspectedFile] = []
    rows: list[Row] = []
    tags: list[str] = []
    for file in found.files:
        of_file = tags_of(file.rows)
        language = main_language(shares_of(file.rows, of_file))
        size = amounts([file])[file.kind].text_bytes
        shape, count = file.source.shape, len(file.rows)
        files.append(InspectedFile(file.path, file.kind, shape, count, size, language))
        rows += file.rows
        tags += of_file
    kinds = amounts(found.files)
    language = main_language(shares_of(rows, tags))
    stages = list(dict.fromkeys(_STAGE_OF[kind] for kind in _STAGE_OF if kind in kinds))
    cost = None
    if base is not None:
        count_tokens, wanted = token_counter(base), (language, UNKNOWN)
        texts = (learnt_text(r) for r, t in zip(rows, tags, strict=True) if t in wanted)
        cost = cost_of(texts, language, count_tokens)
        if "text" in kinds and few_tokens(cost, len(english().encode()) / count_tokens(english())):
            stages.insert(0, "vocab")
    return Inspection(
        files=files,
        kinds=kinds,
        language=language,
        stages=tuple(stages),
        method=_method(kinds),
        cost=cost,
        advice=[
            *found.warnings(),
            *(finding.what for finding in advice_on_amounts(kinds)),
            *_on_licences(found.files),
        ],
    )


def _on_licences(files: Sequence[FileRows]) -> list[str]:
    """Return what to do about the licences that lie beside the files."""
    beside = licences_of(files).files
    if not beside:
        return []
    named = ", ".join(beside[:_NAMED])
    return [f"licence: see {named}; write its name into data.licence, the published model names it"]


def _method(kinds: dict[Kind, Amount]) -> str:
    if "text" not in kinds:
        return "lora"
    return "lora+embeddings" if kinds["text"].text_bytes < LITTLE_TEXT_BYTES else "full"
