"""Which of the institution's text this node trains on: `corpus.toml`, the policy, the forgotten."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from tapestry.data.categories import Category
from tapestry.data.sources import CORPUS_FILE, CorpusSpec, Source, load_corpus, plain_spec
from tapestry.errors import ConfigError
from tapestry_node.canaries import planted_text
from tapestry_node.corpus_history import forgotten, read_history
from tapestry_node.home import NodeHome

_log = logging.getLogger(__name__)

_CANARIES = "planted canaries"
"""A source that no file describes: `tapestry node canaries plant`."""


def corpus_spec(
    home: NodeHome, data: Sequence[Path] = (), *, today: date | None = None
) -> CorpusSpec:
    """Return the sources that are used today: those of `corpus.toml`, else the paths given.

    Left out is what has expired or is missing (as the file says), what the node's policy does not
    admit, and what was forgotten. Canaries that were planted are a source of their own.

    Raises:
        ConfigError: The file has faults, or no source is left.
        UntrustedError: The history that says what was forgotten was changed.
    """
    path, planted = home.folder / CORPUS_FILE, planted_text(home)
    data = [one for one in data if one not in planted]
    if path.is_file():
        spec = load_corpus(path, today=today or datetime.now(UTC).date())
    elif data:
        spec = plain_spec(data)
    else:
        raise ConfigError(
            "no text given: add --data PATH (a file or a folder), or describe your text in "
            f"{path} (`tapestry node corpus init PATH` writes a first one)"
        )
    admitted = home.load_settings().policy.categories
    if set(admitted) != set(Category):
        for source in spec.sources:
            if not source.category:
                reason = f"has no category, and the policy admits only {', '.join(admitted)}"
                spec = spec.without([source.name], reason=reason)
            elif source.category not in admitted:
                reason = f"category {source.category} is not among policy.categories"
                spec = spec.without([source.name], reason=reason)
    for name, day in forgotten(read_history(home.corpus)).items():
        spec = spec.without([name], reason=f"forgotten on {day}")
    spec.require_text(str(path) if path.is_file() else "--data")
    if planted:
        canaries = Source(name=_CANARIES, paths=tuple(planted))
        spec = replace(spec, sources=(*spec.sources, canaries))
    return spec


def text_of(home: NodeHome, data: Sequence[Path]) -> list[Path]:
    """Return the paths of the text that a command is to use.

    Raises:
        ConfigError: There is none, it cannot be read, or it is given twice.
    """
    described = home.folder / CORPUS_FILE
    if data and described.is_file():
        raise ConfigError(
            f"--data {data[0]}: this node's text is described in {described}: leave --data away, "
            "or add a [[source]] there"
        )
    spec = corpus_spec(home, data)
    spec.files()
    return [path for source in spec.sources for path in source.paths]


def is_remembered(home: NodeHome, spec: CorpusSpec) -> bool:
    """Whether no source of `spec` has been forgotten."""
    gone = forgotten(read_history(home.corpus))
    return not any(source.name in gone for source in spec.sources)


def tell_left_out(spec: CorpusSpec) -> None:
    """Log which sources are not used, and why."""
    for one in spec.left_out:
        _log.warning("corpus: source %s is left out: %s", one.name, one.reason)
