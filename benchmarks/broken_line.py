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
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from round_trip import HERE, found_vector, join
from rounds import BenchmarkError, Workload
from running import save
from shaped_line import Outage, slow_line

from tapestry_coordinator.home import CoordinatorHome
from tapestry_demo.federation import Processes, tapestry_command, wait_for_port
from tapestry_node.home import NodeHome

WORKLOAD = Workload(parameters=7 * 2**20, nodes=4, rounds=1)
BYTES_PER_SECOND = 2e6
"""The way of the transfer that breaks: the vector takes 15 s."""
ONE_WAY_SECONDS = 0.05
BREAKS_AT_BYTES = 6e6
MOVES_BYTES = 600_000
"""More than the line's own buffers hold."""
_LOOK_SECONDS = 0.02
_LONGEST_SECONDS = 300.0


@dataclass(kw_only=True)
class Transfer(Outage):
    """A member's, and when it went on."""

    went_on_seconds: float = 0.0
    """After the line was mended; 0: not yet."""

    @property
    def member(self) -> str:
        """Whose it is."""
        return f"{'sends' if self.is_upload else 'fetches'}-{'silent' if self.is_silent else 'cut'}"

    def watch(self) -> None:
        """Break the line or mend it when it is time, and take the time when bytes have moved."""
        self.look()
        if self.mended_at and not self.went_on_seconds:
            now, moved = time.monotonic(), self.passed() - self.stood_at_bytes
            if moved > MOVES_BYTES:
                self.went_on_seconds = now - self.mended_at


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outage", type=float, default=30.0, metavar="SECONDS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tapestry-bench-") as work:
        transfers = measure(Path(work), outage_seconds=args.outage)
    least = MOVES_BYTES / BYTES_PER_SECOND
    rows = [
        {
            "transfer": transfer.member,
            "went_on_seconds": transfer.went_on_seconds,
            "over_least": transfer.went_on_seconds / least,
        }
        for transfer in transfers
    ]
    print(f"after {args.outage:.0f} s; {MOVES_BYTES:,} bytes need {least:.2f} s on the line")
    for transfer, row in zip(transfers, rows, strict=True):
        print(
            f"{transfer.member:16} {transfer.went_on_seconds:6.2f} s {row['over_least']:6.1f} times"
        )
    results = {"outage_seconds": args.outage, "least_seconds": least, "transfers": rows}
    save("broken_line", results)


def measure(folder: Path, *, outage_seconds: float) -> list[Transfer]:
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
        transfers = []
        for is_upload in (False, True):
            for is_silent in (False, True):
                line = slow_line(
                    home.load_settings().network.listen,
                    is_upload=is_upload,
                    bytes_per_second=BYTES_PER_SECOND,
                    one_way_seconds=ONE_WAY_SECONDS,
                )
                transfer = Transfer(
                    line=stack.enter_context(line),
                    is_upload=is_upload,
                    is_silent=is_silent,
                    breaks_at_bytes=BREAKS_AT_BYTES,
                    seconds=outage_seconds,
                )
                start(home, folder, processes, transfer)
                transfers.append(transfer)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while not all(transfer.went_on_seconds for transfer in transfers):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"a transfer did not go on: {transfers}")
            for transfer in transfers:
                processes.require_alive(transfer.member)
                transfer.watch()
            time.sleep(_LOOK_SECONDS)
    return transfers


def start(home: CoordinatorHome, folder: Path, processes: Processes, transfer: Transfer) -> None:
    """Start a member behind its line."""
    join(home, transfer.member, folder)
    NodeHome(folder / transfer.member).identity.change_address(transfer.line.address)
    command = [sys.executable, str(HERE / "echo_node.py"), str(folder / transfer.member)]
    processes.start(transfer.member, command)


if __name__ == "__main__":
    main()
