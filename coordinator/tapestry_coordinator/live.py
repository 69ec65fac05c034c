"""What members do at this moment: kept in memory, and told to the web page by a file.

Nothing depends on it: it is lost when the coordinator stops, and the file is replaced about once a
second without waiting for the disk.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.events import RoundRules
from tapestry_coordinator.round_state import Phase, RoundState

_VERSION = version("tapestry-fl")
"""Read once: to look it up reads the distribution's files, and remembers more each time."""

LIVE_FILE = "live.json"
FORMAT = 1
EVERY_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Doing:
    """What one member was last heard to do."""

    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float = 0.0
    bytes_round: int = 0
    bytes_total: int = 0
    last_seen: float = 0.0

    def begin(self, round_number: int, *, now: float) -> None:
        """Forget another round."""
        if round_number != self.round:
            self.round, self.step, self.steps = round_number, 0, 0
            self.loss, self.tokens_per_second, self.bytes_round = None, 0.0, 0
        self.last_seen = now


class Live:
    """What the members do; one entry for each that was heard of."""

    def __init__(self, *, now: float) -> None:
        """Begin with nobody heard of."""
        self._started_at = now
        self._lock = threading.Lock()
        self._doing: dict[str, _Doing] = {}
        self.aggregation_seconds: float | None = None
        """What the last aggregation took."""

    def reported(
        self,
        member_id: str,
        *,
        round_number: int,
        step: int,
        steps: int,
        loss: float,
        tokens_per_second: float,
        now: float,
    ) -> None:
        """Note a member's progress."""
        with self._lock:
            doing = self._doing.setdefault(member_id, _Doing())
            doing.begin(round_number, now=now)
            doing.step, doing.steps = step, steps
            doing.loss = loss if math.isfinite(loss) else None
            is_speed = math.isfinite(tokens_per_second) and tokens_per_second >= 0
            doing.tokens_per_second = tokens_per_second if is_speed else 0.0

    def received(self, member_id: str, *, round_number: int, size: int, now: float) -> None:
        """Count bytes of a member's contribution."""
        with self._lock:
            doing = self._doing.setdefault(member_id, _Doing())
            doing.begin(round_number, now=now)
            doing.bytes_round += size
            doing.bytes_total += size

    def table(
        self,
        state: RoundState,
        *,
        here: Collection[str],
        rules: RoundRules,
        refused: Mapping[str, int],
        now: float,
        paused: str | None = None,
        ends: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Return how things stand, as `live.json` holds it.

        Args:
            state: The round's.
            here: Members that are connected.
            rules: As configured now, for a round that has not opened.
            refused: Calls that were refused, by status.
            now: Unix seconds.
            paused: Why no round opens, if the operator wants none.
            ends: When the coordinator's certificate and the federation's root do, Unix seconds.
        """
        with self._lock:
            known = {*self._doing, *here, *state.cohort}
            members = {m: self._member(m, state, is_here=m in here) for m in sorted(known)}
            received = sum(doing.bytes_total for doing in self._doing.values())
        rules = state.rules or rules
        return {
            "format": FORMAT,
            "pid": os.getpid(),
            "version": _VERSION,
            "time": now,
            "started_at": self._started_at,
            "phase": state.phase.value,
            "round": state.number,
            "total": rules.total,
            "attempt": state.attempt,
            "paused": paused,
            "quorum": rules.quorum,
            "opened_at": state.opened_at,
            "deadline": state.deadline,
            "closes_at": _closes_at(state, rules),
            "cohort": list(state.cohort),
            "arrived": sorted(state.arrived),
            "declined": state.declined,
            "members": members,
            "uploads_in_flight": sum(m["state"] == "uploading" for m in members.values()),
            "bytes_received": received,
            "refused": dict(refused),
            "ends": dict(ends or {}),
            "aggregation_seconds": self.aggregation_seconds,
        }

    def _member(self, member_id: str, state: RoundState, *, is_here: bool) -> dict[str, Any]:
        doing = self._doing.get(member_id) or _Doing()
        is_now = doing.round == state.number
        return {
            "connected": is_here,
            "state": _state_of(member_id, state, doing, is_here=is_here),
            "step": doing.step if is_now else 0,
            "steps": doing.steps if is_now else 0,
            "loss": doing.loss if is_now else None,
            "tokens_per_second": doing.tokens_per_second if is_now else 0.0,
            "bytes_round": doing.bytes_round if is_now else 0,
            "bytes_total": doing.bytes_total,
            "last_seen": doing.last_seen,
        }


def _state_of(member_id: str, state: RoundState, doing: _Doing, *, is_here: bool) -> str:
    """Return what a member does, in one word."""
    if member_id in state.arrived:
        return "contributed"
    if member_id in state.declined:
        return "declined"
    if not is_here:
        return "absent"
    is_asked = state.phase is Phase.OPEN and member_id in state.cohort
    if not is_asked or doing.round != state.number:
        return "waiting"
    return "uploading" if doing.bytes_round else "training"


def _closes_at(state: RoundState, rules: RoundRules) -> float | None:
    """Return when an open round closes at the latest."""
    if state.phase is not Phase.OPEN:
        return None
    if state.quorum_at is None:
        return state.deadline
    return min(state.quorum_at + rules.grace_seconds, state.deadline)


class LiveFile:
    """Writes `live.json` while its block runs; whoever stops in order leaves none behind."""

    def __init__(
        self,
        path: Path,
        table: Callable[[], Mapping[str, Any]],
        *,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        """Of the coordinator whose state `table` returns."""
        self._path = path
        self._table = table
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="live", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and say so by the file's absence."""
        self._stopping.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _write_forever(self) -> None:
        failed = False
        while not self._stopping.is_set():
            try:
                text = json.dumps(self._table(), separators=(",", ":"))
                write_atomic(self._path, text, mode=0o600, durable=False)
                failed = False
            except OSError as error:
                if not failed:
                    _log.warning("%s: %s; the page does not see what happens", self._path, error)
                failed = True
            self._stopping.wait(self._every_seconds)


def read_live(path: Path) -> dict[str, Any] | None:
    """Return what a coordinator last wrote; None if it stopped in order, or never ran."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(table, dict) and table.get("format") == FORMAT
    return table if is_ours else None
