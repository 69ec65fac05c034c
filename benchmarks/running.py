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

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a set of processes took between two moments."""

    wall_seconds: float
    cpu_seconds: float
    loopback_bytes: int
    """All that passed the loopback interface, TCP and IP headers included."""


class Meter:
    """Wall time, CPU time and loopback traffic from its creation on."""

    def __init__(self, pids: Sequence[int]) -> None:
        """Begin to measure the processes `pids`."""
        self._processes = [psutil.Process(pid) for pid in pids]
        self._wall = time.perf_counter()
        self._cpu = self._cpu_seconds()
        self._bytes = loopback_bytes()

    def _cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(t.user + t.system for t in times)

    def read(self) -> Cost:
        """Return what it took until now."""
        return Cost(
            wall_seconds=time.perf_counter() - self._wall,
            cpu_seconds=self._cpu_seconds() - self._cpu,
            loopback_bytes=loopback_bytes() - self._bytes,
        )


def loopback_bytes() -> int:
    """Return the bytes that the loopback interface has sent since the machine started."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, mapped files included (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} tells no VmHWM")


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
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
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
