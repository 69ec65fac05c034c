"""The processes that descend from this one: their CPU time, their memory, their end.

Some systems start a process for each task, and some detach theirs. So no list is made beforehand:
the kernel hands orphans to this process, and whatever descends from it belongs to the system that
is measured. Linux only.
"""

import ctypes
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.1
_END_SECONDS = 10.0


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends.

    Raises:
        OSError: The kernel does not offer it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot adopt orphaned processes")


def descendants() -> list[psutil.Process]:
    """Return all that live, and those that ended and were not waited for."""
    return psutil.Process().children(recursive=True)


def cpu_seconds() -> float:
    """Return the CPU time of all descendants so far, ended ones included.

    The kernel adds what a process used to its parent when the parent waits for it, so nothing is
    lost with a process that lives for less than a sample.
    """
    own = psutil.Process().cpu_times()
    total = own.children_user + own.children_system
    for process in descendants():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def end_all() -> None:
    """Kill every descendant, those that they start meanwhile too, and take leave of the adopted.

    Processes of `subprocess` must have been waited for.

    Raises:
        TimeoutError: Some do not end.
    """
    deadline = time.monotonic() + _END_SECONDS
    while left := descendants():
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot end processes {[process.pid for process in left]}")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


@dataclass(kw_only=True, slots=True)
class Peak:
    """The most memory that one process had resident, mapped files included (VmHWM)."""

    name: str
    resident_bytes: int


class MemoryWatch:
    """Looks at the memory of all descendants ten times a second, from a thread."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """Call some processes by `names`, which go by pid, and the others by their programs."""
        self.peak_sum_bytes = 0
        """The most that all had resident at one moment; a shared page counts in each process."""
        self.peaks: dict[int, Peak] = {}
        self._names = names
        self._family = _Family()
        self._seen: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look once more, and no further."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        living = self._family.living()
        total = 0
        for pid in living & self._seen:  # one that was only just forked still shows its parent
            with suppress(OSError):
                memory = _memory(pid)
                if not memory:
                    continue
                total += memory["VmRSS"]
                if pid not in self.peaks:
                    name = self._names.get(pid) or _program(pid)
                    self.peaks[pid] = Peak(name=name, resident_bytes=0)
                self.peaks[pid].resident_bytes = memory["VmHWM"]
        self._seen = living
        self.peak_sum_bytes = max(self.peak_sum_bytes, total)


class _Family:
    """Follows who descends from this process, and reads only about processes that are new."""

    def __init__(self) -> None:
        self._members: set[int] = set()
        self._others: set[int] = set()

    def living(self) -> frozenset[int]:
        """Return the pids of the descendants there are."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208
        self._members &= present
        self._others &= present
        for pid in sorted(present - self._members - self._others):
            parent = _parent(pid)
            is_member = parent == os.getpid() or parent in self._members
            (self._members if is_member else self._others).add(pid)
        return frozenset(self._members)


def _parent(pid: int) -> int:
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[1])
    return 0


def _memory(pid: int) -> dict[str, int]:
    """Return the sizes in `/proc/PID/status`, in bytes; none once the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    sizes = [line.split() for line in lines if line.startswith("Vm")]
    return {name.rstrip(":"): int(value) * 1024 for name, value, _unit in sizes}


def _program(pid: int) -> str:
    """Return what a process runs: a Python module or script by its last name, or the program."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    program = Path(words[0]).name
    if not program.startswith("python"):
        return program
    if "-m" in words:
        return words[words.index("-m") + 1].rpartition(".")[2]
    scripts = [word for word in words[1:] if word and not word.startswith("-")]
    return Path(scripts[0]).name if scripts else program
