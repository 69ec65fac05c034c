"""What the comparison is to make and measure, as files that another process reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapestry.storage.atomic import write_atomic


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One model to make and measure."""

    name: str
    start: str
    """Folder of the checkpoint or model that it starts from."""
    train_on: tuple[str, ...]
    """Member ids; empty: measure only. Several: each batch holds one part of each."""
    steps: int
    texts: dict[str, str]
    """Text by member id."""
    caches: dict[str, str]
    """Folder of the packed corpus by member id: the node's own, so the split is the same."""
    pool: str | None
    """The open pool; used by the central model, as by the nodes."""
    shared_fraction: float
    inner: dict[str, Any]
    held_out_bytes: int
    result: str
    """File for the outcome."""
    progress: str

    @property
    def batches(self) -> int:
        """Batches of one institution's size that it trains on: what it costs."""
        return self.steps * len(self.train_on)


def write_job(path: Path, job: Job) -> None:
    """Write a job for a process of its own."""
    write_atomic(path, json.dumps(asdict(job), indent=1))
