"""What of a corpus a round was trained on, source by source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceUse:
    """What of one source was trained on."""

    name: str
    category: str
    documents: int
    """Different ones, whole or in part."""
    tokens: int
    """Predicted ones; what came twice counts twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundUse:
    """What of the institution's own text a round was trained on."""

    corpus: str
    """Digest of the packed corpus."""
    sources: tuple[SourceUse, ...]

    @property
    def documents(self) -> int:
        """How many different documents."""
        return sum(source.documents for source in self.sources)

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return sum(source.tokens for source in self.sources)

    @classmethod
    def read(cls, table: Mapping[str, Any] | None) -> Self | None:
        """Return what `asdict` made a table of; None for none."""
        if table is None:
            return None
        sources = tuple(SourceUse(**source) for source in table["sources"])
        return cls(corpus=table["corpus"], sources=sources)
