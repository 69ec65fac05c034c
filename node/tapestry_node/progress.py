"""What the node does right now, in `progress.json`: for status, the local page, a demonstration."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_EVERY_SECONDS = 0.5


@dataclass(slots=True)
class Progress:
    """What the node does right now."""

    doing: str = "starting"
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    bytes_sent: int = 0
    data_bytes: int = 0
    rows: int = 0
    """Sequences that are held in memory at once."""
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    """By round of the checkpoint."""
    trainer: str = ""
    """What the trainer is not kept from; empty if from everything."""
    silent_since: float = 0.0
    """Unix seconds since when the coordinator has told nothing; 0: it tells."""


class ProgressFile:
    """The file and what is in it."""

    def __init__(self, path: Path, data: Sequence[Path]) -> None:
        """Go on with the scores that an earlier process wrote down."""
        self._path = path
        self._written = 0.0
        self.now = Progress(data_bytes=_size_of(data), bits_per_byte=_scores(path))

    def write(self, doing: str | None, *, bytes_sent: int) -> None:
        """Write the file; at most twice a second unless `doing` changed."""
        now = time.monotonic()
        changed = doing is not None and doing != self.now.doing
        if doing is not None:
            self.now.doing = doing
        self.now.bytes_sent = bytes_sent
        if changed or now - self._written >= _EVERY_SECONDS:
            self._written = now
            with contextlib.suppress(OSError):
                temporary = self._path.with_suffix(".part")
                temporary.write_text(json.dumps(asdict(self.now)), encoding="utf-8")
                temporary.replace(self._path)


def silence(since: float, *, now: float) -> str:
    """Return how long the coordinator has not answered, and what to do; empty if it answers."""
    if since <= 0:
        return ""
    minutes, seconds = divmod(max(0, int(now - since)), 60)
    hours, minutes = divmod(minutes, 60)
    long = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    return (
        f"the coordinator has not answered for {long}; the node goes on when it does. "
        "Without it: tapestry node island --help"
    )


def _scores(progress: Path) -> dict[str, float]:
    """Return the scores of checkpoints that an earlier process wrote down."""
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        scores: dict[str, float] = json.loads(progress.read_text(encoding="utf-8"))["bits_per_byte"]
        return {str(number): float(score) for number, score in scores.items()}
    return {}


def _size_of(paths: Sequence[Path]) -> int:
    """Return the bytes of the institution's files."""
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file())
