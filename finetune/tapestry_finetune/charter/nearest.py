"""What somebody may have meant."""

import difflib
from collections.abc import Iterable


def nearest_of(name: str, known: Iterable[str]) -> str:
    """Return which of the `known` names is the most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
