"""What a benchmark measures of rounds, in the same way for every system."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from descendants import MemoryWatch
from running import Cost, Meter, median

_START_SECONDS = 120.0


class BenchmarkError(Exception):
    """A system could not be measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every system of one run has to do."""

    parameters: int
    nodes: int
    rounds: int
    """The first is not counted: it pays for start-up."""

    @property
    def vector_bytes(self) -> int:
        """The whole model in float32."""
        return 4 * self.parameters

    @property
    def round_limit_seconds(self) -> float:
        """Time after which a round counts as stuck: far more than any system has needed."""
        return 60.0 + 2e-6 * self.nodes * self.parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the counted rounds cost, and the memory of all rounds."""

    cost: Cost
    memory: MemoryWatch


def measure_rounds(
    workload: Workload,
    is_over: Callable[[int], bool],
    *,
    names: Mapping[int, str],
    require_alive: Callable[[], object],
) -> Measured:
    """Watch every process below this one until the last round is over.

    Args:
        workload: How many rounds, and how long one may take.
        is_over: Whether a round, counted from 1, is over.
        names: What to call some of the processes, by pid.
        require_alive: Raises when a process that has to run does not.

    Raises:
        BenchmarkError: A round takes too long.
    """
    limit = workload.round_limit_seconds

    def wait_for(number: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_over(number):
            require_alive()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"round {number} is not over after {seconds:.0f} s")
            time.sleep(0.02)

    with MemoryWatch(names) as memory:
        wait_for(1, _START_SECONDS + limit)
        meter = Meter()
        for number in range(2, workload.rounds + 1):
            wait_for(number, limit)
        cost = meter.read()
    return Measured(cost=cost, memory=memory)


def figures(
    workload: Workload,
    measured: Measured,
    ended: Sequence[float],
    *,
    up_bytes: int,
    down_bytes: int,
) -> dict[str, Any]:
    """Return what a reader compares.

    Args:
        workload: What was done.
        measured: What it cost.
        ended: When each round ended, in seconds.
        up_bytes: What one node has to send in a round.
        down_bytes: What one node has to receive in a round.
    """
    counted = workload.rounds - 1
    seconds = [b - a for a, b in pairwise(ended)]
    payload = workload.nodes * (up_bytes + down_bytes)
    socket = measured.cost.loopback_bytes / counted
    peaks: dict[str, int] = {}
    processes: dict[str, int] = {}
    for peak in measured.memory.peaks.values():
        peaks[peak.name] = max(peaks.get(peak.name, 0), peak.resident_bytes)
        processes[peak.name] = processes.get(peak.name, 0) + 1
    return {
        "round_seconds": median(seconds),
        "all_round_seconds": seconds,
        "cpu_seconds_per_round": measured.cost.cpu_seconds / counted,
        "other_cpu_seconds_per_round": measured.cost.other_cpu_seconds / counted,
        "payload_bytes_per_round": payload,
        "up_bytes_per_node": up_bytes,
        "down_bytes_per_node": down_bytes,
        "socket_bytes_per_round": socket,
        "socket_over_payload": socket / payload,
        "peak_bytes": dict(sorted(peaks.items())),
        "processes": dict(sorted(processes.items())),
        "peak_bytes_sum": measured.memory.peak_sum_bytes,
    }
