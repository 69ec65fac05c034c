"""What computes here: versions, and a digest of the code itself."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

import tapestry


@cache
def _versions() -> Mapping[str, str]:
    """Return the distributions that compute, by name."""
    return {"tapestry": version("tapestry-fl"), "numpy": np.__version__}


def software() -> dict[str, str]:
    """Return what can matter to whoever repeats an aggregation: versions, and the code itself."""
    return {**_versions(), "source": source_digest()}


@cache
def source_digest() -> str:
    """Return the hex SHA-256 over the core's Python files, each by its path and digest."""
    root = Path(tapestry.__file__).parent
    lines = [
        f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in sorted(root.rglob("*.py"))
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
