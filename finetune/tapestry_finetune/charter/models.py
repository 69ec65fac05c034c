"""Which model a command names; what loads it is in `speakers`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Chosen:
    """A checkpoint, or a bundle on one."""

    base: Path
    bundle: Path | None = None
    federation: str | None = None
    device: str = "auto"
    is_unverified: bool = False
