"""How freely text may be used."""

from enum import StrEnum


class Category(StrEnum):
    """How freely a source's text may be used, from the freest on."""

    OPEN = "open"
    """Anybody has it."""
    UNIQUE_OPEN = "unique-open"
    """Open, and nobody else has it."""
    CONTROLLED = "controlled"
    """Under an agreement."""
    SOVEREIGN = "sovereign"
    """Of a nation or a people, who decide over it."""
    PRIVATE = "private"
    """Of persons."""
