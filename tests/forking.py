"""Real `tapestry` processes, forked from one that has imported what the commands need.

Importing torch and transformers takes seconds, and the tests run hundreds of commands. A forked
process is a process of its own in everything that a test looks at: its number, its signals, its
memory, its files, its exit code. So is the first trainer of a node that was forked. A few tests
start `tapestry` as people do; those of the trainer's process and of its isolation always do.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tapestry_demo.workers import Forked
from tapestry_node import trainer_process

_PRELOADED = (
    "tapestry.cli.checkpoint",
    "tapestry.cli.running",
    "tapestry.objectives.causal_lm",
    "tapestry_coordinator.commands",
    "tapestry_coordinator.founding",
    "tapestry_coordinator.standby",
    "tapestry_finetune.commands",
    "tapestry_finetune.language",
    "tapestry.objectives.sampling",
    "tapestry_node.commands",
    "tapestry_node.daemon",
    "tapestry_node.finishing",
    "tapestry_node.trainer",
)


class Forks:
    """Forks commands."""

    def __init__(self) -> None:
        """Begin to import, in a process beside this one."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC, as `run_app` does
        # Else gRPC starts its threads anew in a process that was forked from one with a channel;
        # a forked trainer closes the files that they wait on, and they abort it (code -6).
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        multiprocessing.forkserver.ensure_running()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        errors: Path | None = None,
        typed: Path = Path(os.devnull),
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Forked:
        """Start `tapestry`, its output going to the file `log`; that of stderr too, or `errors`.

        Args:
            arguments: Of the command.
            log: A file that is made empty, or a terminal.
            errors: Likewise.
            typed: What it reads from: a terminal, or nothing.
            cwd: The folder that it is started in; this process's own if None.
            environment: Changes to this process's.
        """
        paths = (log, errors or log)
        for path in paths:
            path.write_bytes(b"")
        streams = (str(typed), *map(str, paths))
        target = (
            list(arguments),
            streams,
            str(cwd or Path.cwd()),
            os.environ | (environment or {}),
        )
        process = self._context.Process(target=_run, args=target, daemon=True)
        process.start()
        return Forked(process)

    def call(self, arguments: Sequence[str], folder: Path, **more: Any) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it said, on stdout and stderr."""
        out, err = folder / "stdout.log", folder / "stderr.log"
        code = self.start(arguments, out, errors=err, **more).wait()
        return code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")


def _run(
    arguments: list[str], streams: Sequence[str], cwd: str, environment: dict[str, str]
) -> None:
    """Be a `tapestry` process: a session, a folder and an environment of its own, streams in files.

    It computes with one thread unless it chooses otherwise: several of them share the cores.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment)
    os.chdir(cwd)
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)
    for standard, (path, mode) in enumerate(zip(streams, modes, strict=True)):
        descriptor = os.open(path, mode)
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - of no path
    sys.argv[:] = ["tapestry", *arguments]
    torch.set_num_threads(1)
    start = getattr(trainer_process, "_start")  # noqa: B009 - how trainers are started
    setattr(trainer_process, "_start", _forking_once(start))  # noqa: B010
    from tapestry.cli.main import main  # noqa: PLC0415 - in the forked process

    sys.exit(main(arguments))


class ForkedTrainer:
    """A forked trainer, with what `TrainerProcess` asks of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        """Wrap a process that was forked."""
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("trainer", timeout or 0)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _forking_once(start: Callable[[socket.socket], Any]) -> Callable[[socket.socket], Any]:
    """Return how to start a trainer: at first by a fork, when there are no keys nor threads yet."""
    forked: list[int] = []

    def begin(theirs: socket.socket) -> Any:
        if forked:
            return start(theirs)
        forked.append(os.fork())
        if not forked[0]:
            _be_trainer(theirs.fileno())
        trainer_process.protect_memory()
        return ForkedTrainer(forked[0])

    return begin


def _be_trainer(descriptor: int) -> None:
    """Be a trainer's process, with the environment and the files that one has."""
    from tapestry_node import training  # noqa: PLC0415 - in the forked process
    from tapestry_node.messages import SocketLine  # noqa: PLC0415

    code = 1
    try:
        passed = trainer_process.environment_of_trainer()
        os.environ.clear()
        os.environ.update(passed)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
        training.main(SocketLine(socket.socket(fileno=descriptor)))
        code = 0
    finally:
        os._exit(code)
