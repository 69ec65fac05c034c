"""What the peers share: an environment of their own, their processes, the ends of their rounds."""

import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from descendants import end_all
from rounds import BenchmarkError, Workload, figures, measure_rounds

from tapestry_demo.federation import Processes, free_port_pair

ENVIRONMENTS = Path(__file__).parent.parent / ".peers"
_CALL_SECONDS = 120.0
_READY_SECONDS = 60.0
_TAIL_LINES = 10


class Peer(ABC):
    """Another framework, installed by `make peers`; its clients only echo."""

    name: ClassVar[str]
    package: ClassVar[str]
    security: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {}
    """Environment variables, beside those that every program needs."""

    def __init__(self, folder: Path) -> None:
        """Work in `folder`."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.logs = folder / "logs"
        self.stamps = folder / "stamps"
        """Where the peer's server writes when each round ended, a line each."""
        self.failure = folder / "failure"
        """Where it writes why it gave up."""

    @abstractmethod
    def start(self, processes: Processes, workload: Workload) -> None:
        """Start everything, up to the first round."""

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Return what the peer's rounds took; leave no process behind.

        Raises:
            BenchmarkError: It does not run; the message ends with its logs.
        """
        try:
            with Processes(self.logs) as processes:
                version = self._version()
                self.start(processes, workload)
                found = self._measure_rounds(processes, workload)
        except (BenchmarkError, OSError) as error:
            raise BenchmarkError(f"{self.name}: {error}{self._tails()}") from error
        finally:
            end_all()
        return {"version": version, "security": self.security, **found}

    def _measure_rounds(self, processes: Processes, workload: Workload) -> dict[str, Any]:
        measured = measure_rounds(
            workload,
            lambda number: len(self._ended()) >= number,
            names={process.pid: name for name, process in processes.running.items()},
            require_alive=lambda: self._require_alive(processes),
        )
        size = workload.vector_bytes
        return figures(workload, measured, self._ended(), up_bytes=size, down_bytes=size)

    def _ended(self) -> list[float]:
        if not self.stamps.exists():
            return []
        lines = self.stamps.read_text(encoding="ascii").splitlines(keepends=True)
        return [float(line) for line in lines if line.endswith("\n")]

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return a command line that sees the peer's environment and nothing of ours."""
        variables = {
            "PATH": f"{ENVIRONMENTS / self.name / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **self.settings,
        }
        return ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), program, *arguments]

    def call(self, program: str, *arguments: str) -> str:
        """Run a command to its end; return what it printed.

        Raises:
            BenchmarkError: It failed, or takes too long.
        """
        try:
            done = subprocess.run(
                self.command(program, *arguments),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_CALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"`{program}` has not ended in {_CALL_SECONDS:.0f} s") from error
        if done.returncode != 0:
            raise BenchmarkError(f"`{program}` failed:\n{_tail(done.stdout)}")
        return done.stdout

    def wait_until(self, processes: Processes, is_ready: Callable[[], bool], *, what: str) -> None:
        """Wait for something at start-up.

        Raises:
            BenchmarkError: It does not come in time, or a process has ended.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while not is_ready():
            self._require_alive(processes)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{what}: not after {_READY_SECONDS:.0f} s")
            time.sleep(0.1)

    def _require_alive(self, processes: Processes) -> None:
        if self.failure.exists():
            raise BenchmarkError(f"its server gave up:\n{_tail(self.failure.read_text())}")
        for name, process in processes.running.items():
            if process.poll() is not None:
                raise BenchmarkError(f"{name} ended with exit code {process.returncode}")

    def _version(self) -> str:
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        return self.call("python", "-c", code).strip()

    def _tails(self) -> str:
        logs = sorted(self.logs.glob("*.log"))
        return "".join(
            f"\n--- {log.name}\n{_tail(log.read_text(errors='replace'))}" for log in logs
        )


def require_installed(name: str) -> None:
    """Refuse a peer that `make peers` has not installed.

    Raises:
        BenchmarkError: It has no environment.
    """
    if not (ENVIRONMENTS / name / "bin" / "python").exists():
        raise BenchmarkError(f"{name} is not installed in {ENVIRONMENTS / name}: run `make peers`")


def is_listening(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    """Return a port that is free now."""
    return free_port_pair()


def _tail(text: str) -> str:
    """Return the last lines, and before them the last that speak of an error."""
    lines = text.strip().splitlines()
    before, last = lines[:-_TAIL_LINES], lines[-_TAIL_LINES:]
    errors = [line for line in before if "ERROR" in line or "Error:" in line]
    return "\n".join([*errors[-5:], *last])
