"""What a localized model is measured on: the recipe's table `[evaluation]`, or a folder."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tapestry.config import Settings, parse_settings
from tapestry.data.files import COMPRESSED, text_suffix
from tapestry.data.language import language_tag
from tapestry.errors import ConfigError
from tapestry_finetune.evaluation.floor import Floor

_LISTS = (".txt", ".jsonl")
_HOW = (
    "a folder holds text/LANGUAGE/ or text/LANGUAGE.txt (held-out text), chats.jsonl, "
    "suites/*.jsonl, prompts.txt, must_answer.txt, must_refuse.txt, protected/, survey.toml, "
    "behaviour.toml; a TOML file has the tables [evaluation] and [floor]"
)


class Suites(Settings):
    """What to measure the model on, and how carefully; paths are seen from this file."""

    text: dict[str, tuple[Path, ...]] = Field(default={})
    """Held-out text of each language that must get better or must not get worse."""
    chats: Path | None = None
    """Conversations that nobody trained on, in any shape that is read: the answers' likelihood."""
    suites: tuple[Path, ...] = ()
    """JSON lines: {"prompt", "choices", "answer"}, {"prompt", "accept"} or {"text"}; "language"
    and "domain" make slices."""
    prompts: Path | None = None
    """Prompts whose answers stand side by side in the report: a line each, or JSON lines with
    "prompt" and "language"."""
    must_answer: Path | None = None
    """Prompts that must be answered, as `prompts`."""
    must_refuse: Path | None = None
    """Prompts that must be refused, as `prompts`."""
    refusals: tuple[str, ...] = ()
    """How the model refuses in your language, beside the phrases that are known already."""
    protected: tuple[Path, ...] = ()
    """Text that no output may repeat word for word."""
    survey: bool | Path = False
    """Where the model stands by ten questions on values; a file of your own in your language."""
    behaviour: bool | Path = False
    """Where it stands by what it does in scenarios; best together with `survey`."""
    answers: int = Field(default=20, ge=1)
    """Prompts whose answers are shown."""
    most_tokens: int = Field(default=96, ge=1)
    """Where an answer is cut, in tokens."""
    documents: int = Field(default=500, ge=1)
    """Texts that are measured of each language, at most."""
    window_tokens: int = Field(default=1024, ge=8)
    """Longest piece the model sees at once; never more than its context."""
    context_tokens: int = Field(default=512, ge=1)
    """Of a long document, how much a later piece sees again before what it predicts; 1: pieces
    side by side, as lm-evaluation-harness has them."""
    resamples: int = Field(default=2000, ge=100)
    """How often the items are drawn anew for an interval."""
    seed: int = 0
    """Of those draws."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        for tag in self.text:
            try:
                language_tag(tag)
            except ConfigError as error:
                raise ValueError(f"text: {error}") from error
        if self.context_tokens >= self.window_tokens:
            raise ValueError(
                f"context_tokens = {self.context_tokens} leaves no room in window_tokens = "
                f"{self.window_tokens}: set it to half of that, or less"
            )
        return self

    def measures_nothing(self) -> bool:
        """Whether no path and no switch asks for anything."""
        asked = (
            *(self.text, self.chats, self.suites, self.prompts),
            *(self.must_answer, self.must_refuse),
            *(self.protected, self.survey, self.behaviour),
        )
        return not any(asked)

    def seen_from(self, folder: Path) -> "Suites":
        """Return the same with paths that are seen from `folder`."""

        def found(path: Path) -> Path:
            return folder / path.expanduser()

        single = {
            name: found(path)
            for name in ("chats", "prompts", "must_answer", "must_refuse", "survey", "behaviour")
            if isinstance(path := getattr(self, name), Path)
        }
        return self.model_copy(
            update={
                **single,
                "text": {tag: tuple(map(found, paths)) for tag, paths in self.text.items()},
                "suites": tuple(map(found, self.suites)),
                "protected": tuple(map(found, self.protected)),
            }
        )


def load_suites(path: Path) -> tuple[Suites, Floor]:
    """Return what a folder, a TOML file (a recipe, too) or a single suite asks to measure.

    Raises:
        ConfigError: Nothing is there, or it cannot be used.
    """
    if path.is_dir():
        named = path / "suites.toml"
        return load_suites(named) if named.is_file() else (_in_folder(path), Floor())
    if path.suffix == ".jsonl":
        return Suites(suites=(path,)), Floor()
    if path.suffix != ".toml":
        what = (
            "is neither a folder nor a file in TOML or JSON lines" if path.exists() else "missing"
        )
        raise ConfigError(f"{path}: {what}; {_HOW}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if "evaluation" not in table:
        raise ConfigError(f"{path}: no table [evaluation]; {_HOW}")
    suites = parse_settings(table["evaluation"], Suites, where=f"{path}: evaluation")
    floor = parse_settings(table.get("floor", {}), Floor, where=f"{path}: floor")
    return suites.seen_from(path.parent), floor


def _in_folder(folder: Path) -> Suites:
    """Return what lies in a folder under the names that are looked for."""
    lists = {
        name: found
        for name in ("prompts", "must_answer", "must_refuse")
        for suffix in _LISTS
        if (found := folder / f"{name}{suffix}").is_file()
    }
    tables = {
        name: found
        for name in ("survey", "behaviour")
        if (found := folder / f"{name}.toml").is_file()
    }
    if (chats := folder / "chats.jsonl").is_file():
        lists["chats"] = chats
    own = {found.name for found in lists.values()}
    loose = [path for path in sorted(folder.glob("*.jsonl")) if path.name not in own]
    protected = (path,) if (path := folder / "protected").exists() else ()
    suites = Suites(
        text=_texts(folder / "text"),
        suites=(*loose, *sorted((folder / "suites").glob("*.jsonl"))),
        protected=protected,
        **lists,
        **tables,
    )
    if suites.measures_nothing():
        raise ConfigError(f"{folder}: nothing here to measure; {_HOW}")
    return suites


def _texts(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the files and folders that are named after a language."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not (path.is_dir() or text_suffix(path)):
            continue
        stem = path.name if path.is_dir() else _without_suffixes(path)
        try:
            tag = language_tag(stem)
        except ConfigError as error:
            raise ConfigError(f"{path}: must be named after a language: {error}") from error
        found[tag] = (*found.get(tag, ()), path)
    return found


def _without_suffixes(path: Path) -> str:
    return Path(path.stem).stem if path.suffix in COMPRESSED else path.stem
