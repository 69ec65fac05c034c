"""Real `tapestry` processes, forked from one that has imported what the commands need.

Importing torch and transformers takes seconds, and the tests run hundreds of commands. A forked
process is a process of its own in everything that a test looks at: its number, its signals, its
memory, its files, its exit code. A few tests start `tapestry` as people do.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tapestry_demo.workers import Forked

_PRELOADED = (
    "tapestry.cli.checkpoint",
    "tapestry.cli.running",
    "tapestry.objectives.causal_lm",
    "tapestry_coordinator.commands",
    "tapestry_coordinator.founding",
    "tapestry_coordinator.standby",
    "tapestry_finetune.commands",
    "tapestry_finetune.language",
    "tapestry_finetune.sampling",
    "tapestry_node.commands",
    "tapestry_node.daemon",
    "tapestry_node.finishing",
)


class Forks:
    """Forks commands."""

    def __init__(self) -> None:
        """Begin to import, in a process beside this one."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC, as `run_app` does
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        multiprocessing.forkserver.ensure_running()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        errors: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Forked:
        """Start `tapestry`, its output going to the file `log`; that of stderr too, or `errors`."""
        paths = (log, errors or log)
        for path in paths:
            path.write_bytes(b"")
        target = (list(arguments), *map(str, paths), {**os.environ, **(environment or {})})
        process = self._context.Process(target=_run, args=target, daemon=True)
        process.start()
        return Forked(process)

    def call(self, arguments: Sequence[str], folder: Path) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it said, on stdout and stderr."""
        out, err = folder / "stdout.log", folder / "stderr.log"
        code = self.start(arguments, out, errors=err).wait()
        return code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")


def _run(arguments: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    """Be a `tapestry` process: a session and an environment of its own, output in files."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment)
    for standard, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.argv[:] = ["tapestry", *arguments]
    from tapestry.cli.main import main  # noqa: PLC0415 - in the forked process

    sys.exit(main(arguments))
