"""Verifies published checkpoints in the background, newest first, and remembers the outcome."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import TapestryError
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.web.history import RoundSummary

_log = logging.getLogger(__name__)
_NICENESS = 10
_REST_FACTOR = 4.0
"""It rests this many times as long as it worked: at most a fifth of one core and disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a verification found."""

    at: float
    error: str = ""
    """Empty if all was as it was signed."""


class Verifier:
    """A thread of low priority."""

    def __init__(
        self,
        home: CoordinatorHome,
        checkpoints: Callable[[], list[RoundSummary]],
        *,
        clock: Callable[[], float],
    ) -> None:
        """Verify what `checkpoints` returns, oldest first, as far as its folders are kept."""
        self._home = home
        self._checkpoints = checkpoints
        self._clock = clock
        self._path = home.page / "verified.json"
        self._outcomes: dict[str, Outcome] = self._load()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)
        self.version = 0
        """Counts outcomes."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present checkpoint, whose outcome is lost if that takes long."""
        self._stopping.set()
        self._thread.join(timeout=2.0)

    def outcome(self, digest: str) -> Outcome | None:
        """What is known of a checkpoint, by its manifest's digest."""
        return self._outcomes.get(digest)

    def next(self) -> RoundSummary | None:
        """The newest checkpoint that is kept and was not verified."""
        for summary in reversed(self._checkpoints()):
            is_known = summary.digest in self._outcomes
            if not is_known and self._home.checkpoint(summary.number).is_dir():
                return summary
        return None

    def verify(self, summary: RoundSummary) -> Outcome:
        """Verify one checkpoint now."""
        error = ""
        try:
            verified = verify_checkpoint(self._home.checkpoint(summary.number))
            if verified.manifest_digest != summary.digest:
                error = "the folder holds another checkpoint than the registry"
        except (TapestryError, OSError) as caught:
            error = str(caught)
        outcome = Outcome(at=self._clock(), error=error)
        self._outcomes = {**self._outcomes, summary.digest: outcome}
        self.version += 1
        if error:
            _log.error("checkpoint %d does not verify: %s", summary.number, error)
        self._save()
        return outcome

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stopping.is_set():
            began = time.monotonic()
            due = self.next()
            if due is not None:
                self.verify(due)
            self._stopping.wait(max(1.0, _REST_FACTOR * (time.monotonic() - began)))

    def _load(self) -> dict[str, Outcome]:
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
            return {digest: Outcome(**values) for digest, values in table.items()}
        except (OSError, ValueError, TypeError):
            return {}

    def _save(self) -> None:
        table = {digest: asdict(outcome) for digest, outcome in self._outcomes.items()}
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(self._path, json.dumps(table), mode=0o600, durable=False)
        except OSError as error:
            _log.warning("%s: %s; verified again after a restart", self._path, error)
