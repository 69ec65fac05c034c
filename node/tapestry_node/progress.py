"""What the node does right now, in `progress.json`: for status, the local page, a demonstration."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_EVERY_SECONDS = 0.5
_SPEED_SECONDS = 1.0
"""That a point of the speed stands for, at least."""
_MOST_POINTS = 400
"""Of a round's curve; then every second one is left out."""


@dataclass(slots=True)
class Progress:
    """What the node does right now."""

    doing: str = "starting"
    done: int = 0
    """How far that is, of `of`, in `unit`."""
    of: int = 0
    """0: nobody knows."""
    unit: str = ""
    """`steps`, `fragments` or `bytes`."""
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    seconds_left: float = 0.0
    """Until the last inner step, at this speed."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss of `round`, thinned out."""
    speeds: list[tuple[int, float]] = field(default_factory=list)
    """Step, and tokens a second since the point before, thinned out likewise."""
    waits_for_approval: int = 0
    """Round whose contribution waits for a person; 0: none does."""
    bytes_sent: int = 0
    data_bytes: int = 0
    rows: int = 0
    """Sequences that are held in memory at once."""
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    """By round of the checkpoint."""
    trainer: str = ""
    """What the trainer is not kept from; empty if from everything."""
    pid: int = 0
    """Of the daemon that writes this."""
    running_since: float = 0.0
    """Unix seconds, as the next two."""
    connected_since: float = 0.0
    """0: it is not."""
    silent_since: float = 0.0
    """Since when the coordinator has told nothing; 0: it tells."""
    policy: str = ""
    """Digest of the policy that the daemon read at its start."""
    failure: str = ""
    """Why the daemon ended, if not because it was told to."""


class ProgressFile:
    """The file and what is in it."""

    def __init__(
        self,
        path: Path,
        data: Sequence[Path],
        *,
        clock: Callable[[], float],
        bytes_sent: Callable[[], int] = lambda: 0,
        show: Callable[[Progress], None] | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on with what an earlier process wrote down.

        Args:
            path: Of the file.
            data: The institution's text.
            clock: Unix seconds, for a person, beside the log's times.
            bytes_sent: Message bytes that this process has sent.
            show: Called with every change, for a terminal.
            ticks: Seconds, to measure speed with.
        """
        self._path = path
        self._clock = clock
        self._bytes_sent = bytes_sent
        self._show = show
        self._ticks = ticks
        self._since = (0, 0, 0.0)
        """Round, step and ticks from which the next point of the speed counts."""
        self._written = 0.0
        before = read_progress(path)
        self.now = Progress(
            data_bytes=_size_of(data),
            bits_per_byte=before.bits_per_byte,
            round=before.round,
            losses=before.losses,
            speeds=before.speeds,
            pid=os.getpid(),
            running_since=clock(),
        )

    def write(self, doing: str | None = None) -> None:
        """Write the file, with what is done now; at most twice a second unless that has changed."""
        now = time.monotonic()
        changed = doing is not None and doing != self.now.doing
        if doing is not None and changed:
            self.now.doing = doing
            self.now.done = self.now.of = 0
            self.now.unit = ""
        self.now.bytes_sent = self._bytes_sent()
        if self._show is not None:
            self._show(self.now)
        if changed or now - self._written >= _EVERY_SECONDS:
            self._written = now
            with contextlib.suppress(OSError):
                temporary = self._path.with_suffix(".part")
                temporary.touch(mode=0o600)
                temporary.write_text(json.dumps(asdict(self.now)), encoding="utf-8")
                temporary.replace(self._path)

    def count(self, done: int, of: int, unit: str = "bytes") -> None:
        """Show how far that is which the node does."""
        self.now.done, self.now.of, self.now.unit = done, of, unit
        self.write()

    def packing(self, doing: str, done: int, of: int) -> None:
        """Show what is done with the text, with bytes done and bytes of all."""
        self.write(doing)
        self.count(done, of)

    def line(self, *, is_told: bool) -> None:
        """Show since when the coordinator tells, or tells nothing."""
        now = self.now
        if not is_told:
            now.connected_since = 0.0
            now.silent_since = now.silent_since or self._clock()
        elif now.silent_since or not now.connected_since:
            now.silent_since, now.connected_since = 0.0, self._clock()
        else:
            return
        self.write()

    def end(self) -> None:
        """Show that the node has stopped."""
        self.now.silent_since = self.now.connected_since = 0.0
        self.write("stopped")

    def step(
        self, round_number: int, step: int, steps: int, *, loss: float, speed: float, tokens: int
    ) -> None:
        """Show an inner step: `speed` in tokens a second, `tokens` of one step."""
        now = self.now
        is_same = round_number == now.round  # whose steps may be taken again, after a crash
        now.losses = [p for p in now.losses if p[0] < step] if is_same else []
        now.speeds = [p for p in now.speeds if p[0] < step] if is_same else []
        now.round, now.step, now.steps = round_number, step, steps
        now.loss, now.tokens_per_second = loss, speed
        now.seconds_left = (steps - step) * tokens / max(speed, 1e-9)
        now.losses.append((step, round(loss, 5)))
        self._time(round_number, step, tokens)
        for points in (now.losses, now.speeds):
            if len(points) > _MOST_POINTS:
                del points[1:-1:2]
        self.write("training")

    def _time(self, round_number: int, step: int, tokens: int) -> None:
        """Add a point of the speed, if that is due; the first step tells nothing of it."""
        ticks = self._ticks()
        known, first, began = self._since
        if known != round_number or step <= first:
            self._since = (round_number, step, ticks)
        elif ticks - began >= _SPEED_SECONDS:
            speed = (step - first) * tokens / (ticks - began)
            self.now.speeds.append((step, round(speed, 1)))
            self._since = (round_number, step, ticks)


def read_progress(path: Path) -> Progress:
    """Return what a daemon wrote down; what cannot be read is as at the start.

    The file is written often and never awaited, so a machine that goes down may cut it short.
    """
    found = Progress(doing="")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    if not isinstance(table, dict):
        return found
    for name, default in asdict(found).items():
        value = table.get(name, default)
        if isinstance(value, type(default)) or (
            isinstance(default, float) and isinstance(value, int)
        ):
            setattr(found, name, value)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        found.losses = [(int(step), float(loss)) for step, loss in found.losses]
        found.speeds = [(int(step), float(speed)) for step, speed in found.speeds]
        found.bits_per_byte = {str(int(n)): float(b) for n, b in found.bits_per_byte.items()}
        return found
    found.losses, found.speeds, found.bits_per_byte = [], [], {}
    return found


def in_words(now: Progress) -> str:
    """Return what the node does, and how far it is, in one line."""
    if now.doing == "training":
        words = (
            f"round {now.round}: training step {now.step} of {now.steps}, loss {now.loss:.3f}, "
            f"{now.tokens_per_second:,.0f} tokens/s"
        )
        return f"{words}, {lasting(now.seconds_left)} left" if now.seconds_left else words
    if not now.of:
        return now.doing
    if now.unit == "bytes":
        return f"{now.doing}: {now.done / 1e6:,.1f} of {now.of / 1e6:,.1f} MB"
    return f"{now.doing}: {now.done:,} of {now.of:,} {now.unit}"


def lasting(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for i, (name, size) in enumerate(units):
        if whole >= size or size == 1:
            first, rest = divmod(whole, size)
            if size == 1:
                return f"{first} s"
            smaller, unit = units[i + 1]
            return f"{first} {name} {rest // unit} {smaller}"
    raise AssertionError


def silence(since: float, *, now: float) -> str:
    """Return how long the coordinator has not answered, and what to do; empty if it answers."""
    if since <= 0:
        return ""
    return (
        f"the coordinator has not answered for {lasting(now - since)}; the node goes on when it "
        "does. Without it: tapestry node island --help"
    )


def _size_of(paths: Sequence[Path]) -> int:
    """Return the bytes of the institution's files."""
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file())
