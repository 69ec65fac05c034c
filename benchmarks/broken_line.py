"""How soon transfers go on when a line comes back that broke in their middle.

Four members fetch the base checkpoint or send their contribution, each over a slow line of its
own. It breaks in the middle: its connections are closed, or nothing passes any more and nobody is
told. After the outage it is mended, and the time is taken until as much more has passed as no
buffer of the line holds. The least that this can take is what those bytes need on the line.

    python benchmarks/broken_line.py --outage 30

`tests/e2e/test_bad_lines.py` shows with real nodes that nothing is sent twice and no process is
started again; this says how long it takes, with nodes that only echo.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from round_trip import HERE, found_vector, join
from rounds import BenchmarkError, Workload
from running import save
from shaped_line import ShapedLine

from tapestry_coordinator.home import CoordinatorHome
from tapestry_demo.federation import Processes, tapestry_command, wait_for_port

WORKLOAD = Workload(parameters=7 * 2**20, nodes=4, rounds=1)
BYTES_PER_SECOND = 2e6
"""The way of the transfer that breaks: the vector takes 15 s."""
ONE_WAY_SECONDS = 0.05
BREAKS_AT_BYTES = 6e6
MOVES_BYTES = 600_000
"""More than the line's own buffers hold."""
_LOOK_SECONDS = 0.02
_LONGEST_SECONDS = 300.0


@dataclass
class Outage:
    """A member's line that breaks once, in the middle of one transfer."""

    is_upload: bool
    is_silent: bool
    line: ShapedLine
    broke_at: float = 0.0
    mended_at: float = 0.0
    stood_at_bytes: int = 0
    went_on_seconds: float = 0.0

    @property
    def member(self) -> str:
        """Whose it is."""
        return f"{'sends' if self.is_upload else 'fetches'}-{'silent' if self.is_silent else 'cut'}"

    def look(self, *, outage_seconds: float) -> None:
        """Break the line or mend it when it is time."""
        now, passed = time.monotonic(), self.line.passed()[0 if self.is_upload else 1]
        if not self.broke_at:
            if passed > BREAKS_AT_BYTES:
                self.broke_at = now
                (self.line.blackhole if self.is_silent else self.line.cut)()
        elif not self.mended_at:
            if now > self.broke_at + outage_seconds:
                self.line.mend()
                self.mended_at, self.stood_at_bytes = now, passed
        elif not self.went_on_seconds and passed > self.stood_at_bytes + MOVES_BYTES:
            self.went_on_seconds = now - self.mended_at


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outage", type=float, default=30.0, metavar="SECONDS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tapestry-bench-") as work:
        outages = measure(Path(work), outage_seconds=args.outage)
    least = MOVES_BYTES / BYTES_PER_SECOND
    rows = [
        {
            "transfer": outage.member,
            "went_on_seconds": outage.went_on_seconds,
            "over_least": outage.went_on_seconds / least,
        }
        for outage in outages
    ]
    print(f"after {args.outage:.0f} s; {MOVES_BYTES:,} bytes need {least:.2f} s on the line")
    for outage, row in zip(outages, rows, strict=True):
        print(f"{outage.member:16} {outage.went_on_seconds:6.2f} s {row['over_least']:6.1f} times")
    results = {"outage_seconds": args.outage, "least_seconds": least, "transfers": rows}
    save("broken_line", results)


def measure(folder: Path, *, outage_seconds: float) -> list[Outage]:
    """Run one round over four lines that break; return when each transfer went on.

    Raises:
        BenchmarkError: One did not within five minutes.
    """
    home = CoordinatorHome(folder / "coordinator")
    found_vector(home, WORKLOAD, codec="float32", downlink="float32")
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(folder / "logs"))
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=60)
        outages = []
        for is_upload in (False, True):
            for is_silent in (False, True):
                line = stack.enter_context(line_to(home, is_upload=is_upload))
                outage = Outage(is_upload, is_silent, line)
                start(home, folder, processes, outage)
                outages.append(outage)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while not all(outage.went_on_seconds for outage in outages):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"a transfer did not go on: {outages}")
            for outage in outages:
                processes.require_alive(outage.member)
                outage.look(outage_seconds=outage_seconds)
            time.sleep(_LOOK_SECONDS)
    return outages


def line_to(home: CoordinatorHome, *, is_upload: bool) -> ShapedLine:
    """Return a line that is slow in one direction."""
    slow = "up_bytes_per_second" if is_upload else "down_bytes_per_second"
    listens = home.load_settings().network.listen
    return ShapedLine(listens, one_way_seconds=ONE_WAY_SECONDS, **{slow: BYTES_PER_SECOND})


def start(home: CoordinatorHome, folder: Path, processes: Processes, outage: Outage) -> None:
    """Start a member behind its line."""
    join(home, outage.member, folder)
    path = folder / outage.member / "identity" / "membership.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "address": outage.line.address}))
    command = [sys.executable, str(HERE / "echo_node.py"), str(folder / outage.member)]
    processes.start(outage.member, command)


if __name__ == "__main__":
    main()
