"""What the benchmarks share: real processes, what they cost, and where results go."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from descendants import cpu_seconds

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a set of processes took between two moments."""

    wall_seconds: float
    cpu_seconds: float
    other_cpu_seconds: float
    """What all other programs of the machine used: none, if it was at rest."""
    loopback_bytes: int
    """All that passed the loopback interface, TCP and IP headers included."""


class Meter:
    """Wall time, loopback traffic and the descendants' CPU time, from its creation on."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._wall = time.perf_counter()
        self._cpu = cpu_seconds()
        self._other_cpu = _other_cpu_seconds()
        self._bytes = loopback_bytes()

    def read(self) -> Cost:
        """Return what it took until now."""
        return Cost(
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=cpu_seconds() - self._cpu,
            other_cpu_seconds=_other_cpu_seconds() - self._other_cpu,
            loopback_bytes=loopback_bytes() - self._bytes,
        )


def _other_cpu_seconds() -> float:
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return float(busy - own.user - own.system) - cpu_seconds()


def loopback_bytes() -> int:
    """Return the bytes that this process's loopback interface has sent since it came up."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def machine() -> dict[str, Any]:
    """Return what a reader must know to compare figures."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Write results as JSON below `benchmarks/results/`; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    table = {"benchmark": name, "machine": machine(), **results}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"saved {path}")
    return path


def median(values: Sequence[float]) -> float:
    """Return the median of `values`."""
    return statistics.median(values)
