"""Processes that need not import torch anew: forked from one that has imported it.

Importing torch and transformers takes seconds, and the demonstration runs a dozen commands that
need both. One process imports them while the texts are being written, and is forked for each
command. The institutions' nodes and the coordinator are started as anybody would start them.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from tapestry.errors import TapestryError

_PRELOADED = (
    "tapestry.objectives.causal_lm",
    "tapestry_demo.comparison",
    "tapestry_finetune.language",
    "tapestry_finetune.sampling",
    "tapestry_node.finishing",
)

COMPARE = "compare"
"""Stands for `tapestry_demo.comparison`, which is no command of its own."""


class Forked:
    """A forked command, with what `subprocess.Popen` has of it."""

    def __init__(self, process: BaseProcess) -> None:
        """Wrap a process that was started."""
        self._process = process

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tapestry", timeout or 0)
        return self._process.exitcode


class Workers:
    """Forks commands."""

    def __init__(self, logs: Path) -> None:
        """Begin to import, in a process beside this one; outputs go to files in `logs`."""
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        multiprocessing.forkserver.ensure_running()

    def start(self, arguments: Sequence[str], log: Path) -> Forked:
        """Start `tapestry` with `arguments`, its output going to the file `log`."""
        process = self._context.Process(target=_run, args=(list(arguments), str(log)), daemon=True)
        process.start()
        return Forked(process)

    def call(self, *arguments: str) -> str:
        """Run a command to its end; return what it printed.

        Raises:
            TapestryError: It failed, with its last line.
        """
        log = self._logs / f"{'-'.join(arguments[:2])}.log"
        code = self.start(arguments, log).wait()
        output = log.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            last = (output.strip().splitlines() or [f"exit code {code}"])[-1]
            raise TapestryError(f"`tapestry {' '.join(arguments[:2])}` failed: {last}")
        return output


def _run(arguments: list[str], log: str) -> None:
    """Be a `tapestry` process: a session of its own, output in a file."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    if arguments[0] == COMPARE:
        from tapestry_demo import comparison  # noqa: PLC0415 - preloaded

        comparison.main(arguments[1:])
        return
    from tapestry.cli.main import main  # noqa: PLC0415 - preloaded

    sys.exit(main(arguments))
