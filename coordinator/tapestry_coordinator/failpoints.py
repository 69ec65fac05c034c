"""Named moments at which a test can make this process die, stall or fail.

`tapestry coordinator serve --failpoints` obeys the environment variable `TAPESTRY_FAILPOINT`; no
other command, no setting and no call from outside can. Without the flag a reached moment costs
nothing that can be measured.

```
TAPESTRY_FAILPOINT=NAME[@COUNT][:ACTION][,...]
```
At the COUNT-th time (1 if absent) that the process reaches NAME, once: `kill` (if absent: SIGKILL,
as a crash), `sleep` (the thread stalls until the process ends), `enospc` or `eio` (OSError, as from
a disk that is full or broken).
"""

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from tapestry.errors import ConfigError

VARIABLE = "TAPESTRY_FAILPOINT"

MOMENTS = {
    "event-uncommitted": "an event and its rows are written, their transaction is not ended",
    "plan-recorded": "a round has been opened in the registry and announced to nobody",
    "fragment-stored": "a fragment of a contribution is in its file, its sender has no answer",
    "contribution-received": "all fragments are there, the contribution is not durable",
    "contribution-durable": "a contribution is durable and not in the registry",
    "receipt-recorded": "a receipt is in the registry and was not sent",
    "round-closed": "the last contribution is in, nothing is aggregated",
    "fragment-aggregated": "a fragment of the new vector is written",
    "checkpoint-built": "a checkpoint is complete in its temporary folder",
    "checkpoint-in-place": "a checkpoint is in its folder and not in the registry",
    "checkpoint-recorded": "a checkpoint is in the registry and announced, not yet durable",
    "checkpoint-durable": "a checkpoint is on the disk, and still noted as not being there",
    "checkpoint-retired": "an old checkpoint that is kept no more has lost its name, not its files",
}
"""By name, in the order in which a round comes by them."""

Action = Literal["kill", "sleep", "enospc", "eio"]

_STALL_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What happens at a moment, and at which of its occurrences."""

    moment: str
    count: int
    action: Action

    @classmethod
    def parsed(cls, text: str) -> "Failpoint":
        """Read `NAME[@COUNT][:ACTION]`.

        Raises:
            ConfigError: There is no such moment or action.
        """
        place, _colon, action = text.strip().partition(":")
        moment, _at, count = place.partition("@")
        if moment not in MOMENTS:
            raise ConfigError(f"{VARIABLE}: no moment {moment!r}; there are: {', '.join(MOMENTS)}")
        if (action or "kill") not in get_args(Action):
            raise ConfigError(
                f"{VARIABLE}: no action {action!r}; there are: {', '.join(get_args(Action))}"
            )
        if not (count or "1").isdigit() or int(count or 1) < 1:
            raise ConfigError(f"{VARIABLE}: {count!r} is no count: expected {moment}@1 or higher")
        chosen: Action = next(a for a in get_args(Action) if a == (action or "kill"))
        return cls(moment, int(count or 1), chosen)


class Failpoints:
    """What is to happen in one process, each of it once."""

    def __init__(self, points: Sequence[Failpoint]) -> None:
        """Count from now on."""
        self._points = points
        self._reached: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, moment: str) -> None:
        """Count a moment, and act if it is its turn."""
        with self._lock:
            self._reached[moment] += 1
            count = self._reached[moment]
        for point in self._points:
            if (point.moment, point.count) == (moment, count):
                _act(point.action)


_at_moment: list[Callable[[str], None]] = []
"""Empty, but in a test."""


def arm(environment: Mapping[str, str]) -> None:
    """Obey the failpoints in `environment` from now on; to be called at a process's start.

    Raises:
        ConfigError: They are not understood.
    """
    parts = [part for part in environment.get(VARIABLE, "").split(",") if part.strip()]
    if parts:
        _at_moment.append(Failpoints([Failpoint.parsed(part) for part in parts]))


@contextmanager
def observed(at_moment: Callable[[str], None]) -> Iterator[None]:
    """Tell a test in this process of every moment while the block runs; it may raise."""
    _at_moment.append(at_moment)
    try:
        yield
    finally:
        _at_moment.remove(at_moment)


def reach(moment: str) -> None:
    """Do what was asked for at this moment, if anything was."""
    for at_moment in _at_moment:
        at_moment(moment)


def _act(action: Action) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "sleep":
        time.sleep(_STALL_SECONDS)
    else:
        code = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(code, os.strerror(code))
