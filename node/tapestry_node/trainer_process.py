"""The guard's end of the trainer's process: starts it, asks it, and survives its death.

The process is started as a new program, with an environment of named variables only and without the
guard's files: nothing of the guard's memory, where the keys are, is in it. It ends when the guard
does, however that ends. Or a launcher starts it, and others with it (`launching`).
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tapestry.checkpoints.statements import RoundPlan
from tapestry.data.usage import RoundUse
from tapestry.errors import ConfigError, UnavailableError
from tapestry.objectives.reports import Evaluation, StepReport
from tapestry_node.home import NodeHome
from tapestry_node.isolation import protect_memory
from tapestry_node.launching import Launching
from tapestry_node.messages import Line, Made, SocketLine, error_named
from tapestry_node.policy import NodeTable

_log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_PASSED = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "USER", "LOGNAME", "CC", "CXX"}
)
_PASSED_PREFIXES = ("LC_", "PYTHON", "LD_", "CUDA", "NVIDIA", "OMP_", "MKL_", "TORCH", "XDG_CACHE",
                    "HF_", "TOKENIZERS_", "TAPESTRY_TRAINER_")  # fmt: skip
"""What a trainer's libraries look for; nothing else of the environment is the trainer's."""


class TrainerLostError(UnavailableError):
    """The trainer's process ended; another can be started, and the round trained again."""


class OutOfMemoryError(TrainerLostError):
    """Training took more memory than there is."""


class _Started(Protocol):
    """A process that is at work, or will be."""

    def line(self) -> Line:
        """Return the line to it.

        Raises:
            UnavailableError: It is not there yet.
        """

    def lost(self) -> TrainerLostError:
        """Return what to raise when it has hung up."""

    def stop(self) -> None:
        """Have it end."""


class TrainerProcess:
    """A trainer, in a process of its own."""

    def __init__(
        self,
        home: NodeHome,
        *,
        on_blocked: Callable[[str, str], None],
        on_packing: Callable[[str, int, int], None] = lambda _doing, _done, _of: None,
        launching: Launching | None = None,
    ) -> None:
        """Start it; it imports what it needs while the guard goes on.

        Args:
            home: Of the node.
            on_blocked: Told when the trainer has tried to reach a network: the call, and where to.
            on_packing: Told what the trainer does with the text, with bytes done and bytes of all.
            launching: Where a launcher starts it; nothing is started here then.
        """
        home.load_settings()  # written by us if there are none: the trainer can only read them
        self._home = home
        self._on_blocked = on_blocked
        self._on_packing = on_packing
        self.isolation = ""
        """What the kernel does not keep the trainer from; empty if it keeps it from everything."""
        self.seconds_before = 0.0
        """That earlier processes spent on the round that is trained, or was trained last."""
        self._is_greeted = False
        self._started: _Started
        self.pid = 0
        """The process's number; 0 where a launcher starts it."""
        if launching is None:
            child = _Child()
            self._started, self.pid = child, child.pid
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # gone already: the first call says
                self._greet()
        else:
            self._started = _Elsewhere(launching)

    def _greet(self) -> None:
        self._started.line().send(
            "hello",
            home=str(self._home.folder),
            keys=str(self._home.identity.folder),
            log_level=logging.getLogger("tapestry_node").getEffectiveLevel(),
        )

    def open(
        self,
        settings: NodeTable,
        objective: str,
        checkpoint: Path,
        data: Sequence[Path],
        *,
        sequence_tokens: int,
    ) -> None:
        """Build the model and pack the corpus.

        Raises:
            ConfigError: The data cannot be used; the message names the file.
        """
        self._call(
            "open",
            settings=settings.model_dump(mode="json"),
            objective=objective,
            checkpoint=str(checkpoint),
            data=[str(path) for path in data],
            sequence_tokens=sequence_tokens,
        )

    def use_pool(self, path: Path, digest: str) -> None:
        """Pack the federation's open pool, once for each digest."""
        self._call("pool", path=str(path), digest=digest)

    def measure(self, checkpoint: Path) -> Evaluation:
        """Measure a checkpoint on this node's held-out text."""
        return Evaluation(**self._call("measure", checkpoint=str(checkpoint)))

    def train(
        self,
        plan: RoundPlan,
        checkpoint: Path,
        *,
        previous_state: Path | None,
        on_step: Callable[[StepReport], bool],
        rows: int = 0,
        keeps_last: Callable[[], bool] = lambda: False,
    ) -> tuple[int, float, float]:
        """Take the plan's inner steps, or what is left of them; fewer if `on_step` ends it.

        Args:
            plan: What to train.
            checkpoint: Its base.
            previous_state: The inner optimizer's state, if there is one.
            on_step: Called after each step; False ends the training early.
            rows: Sequences that are held in memory at once; 0: all of a micro-batch.
            keeps_last: Asked when `on_step` ends it: whether what was done is kept on the disk.

        Returns:
            Steps taken, the first loss and the last.
        """

        def on_event(event: dict[str, Any]) -> None:
            step = StepReport(step=event["step"], loss=event["loss"], tokens=event["tokens"])
            if not on_step(step) and not stopped:
                stopped.append(step)
                self._started.line().send("stop", keep=keeps_last())

        stopped: list[StepReport] = []
        done = self._call(
            "train",
            on_event=on_event,
            plan=plan.model_dump_json(),
            checkpoint=str(checkpoint),
            previous_state=None if previous_state is None else str(previous_state),
            rows=rows,
        )
        return done["steps"], done["loss_first"], done["loss_last"]

    def write(self, file: Path, *, on_fragment: Callable[[int], None]) -> Made:
        """Write the pseudo-gradient of what was trained last, encoded, into an empty file.

        Args:
            file: Of the caller's.
            on_fragment: Called when a fragment is in the file, in index order.
        """
        done = self._call(
            "write", on_event=lambda event: on_fragment(event["index"]), file=str(file)
        )
        statistics = {name: tuple(values) for name, values in done.pop("statistics").items()}
        return Made(statistics=statistics, use=RoundUse.read(done.pop("use")), **done)

    def examine(
        self,
        *,
        on_progress: Callable[[str, int, int], None],
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Measure what a contribution gives away; `training.py` says of what.

        Args:
            on_progress: Told what is done, how far that is, and of how much.
            asked: As there.
        """

        def on_event(event: dict[str, Any]) -> None:
            on_progress(event["doing"], event["done"], event["of"])

        return self._call("examine", on_event=on_event, **asked)

    def stop(self) -> None:
        """End the process."""
        self._started.stop()

    def _call(
        self,
        kind: str,
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **asked: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Ask one thing; return the answer, and pass what is told meanwhile on."""
        if not self._is_greeted:
            self._take_greeting()
        try:
            self._started.line().send(kind, **asked)
            return self._answer(on_event)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._started.lost() from error

    def _take_greeting(self) -> None:
        """Hear what the process has given up."""
        try:
            if not self.pid:
                self._greet()
            greeting = self._answer(None)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._started.lost() from error
        self._is_greeted = True
        if not (greeting["network"] and greeting["keys"]):
            self.isolation = greeting["obstacle"]
            _log.warning(
                "this system does not let the trainer be shut off from network and keys (%s): only "
                "Python's own calls are stopped; see docs/security.md",
                greeting["obstacle"],
            )

    def _answer(self, on_event: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        while True:
            message = self._started.line().receive()
            kind = message.pop("kind")
            if kind == "done":
                return message
            if kind == "failed":
                raise self._failure(message)
            if kind == "log":
                _log.log(message["level"], "%s", message["text"])
            elif kind == "blocked":
                self._on_blocked(message["call"], message["to"])
            elif kind == "packing":
                self._on_packing(message["doing"], message["done"], message["of"])
            elif kind == "begun":
                self.seconds_before = message["seconds"]
            elif on_event is not None:
                on_event(message)

    def _failure(self, message: dict[str, Any]) -> Exception:
        if message["error"] == "memory":
            return OutOfMemoryError(f"the trainer ran out of memory: {message['text']}")
        if message["error"] == "lost":
            return TrainerLostError(message["text"])
        if message["error"] == "os" and message["kind_of"] not in _OS_ERRORS:
            return ConfigError(
                f"the trainer failed with {message['kind_of']}: {message['text'][:300]}"
            )
        return error_named(message["error"], message["text"])


_OS_ERRORS = frozenset(
    {"OSError", "FileNotFoundError", "PermissionError", "IsADirectoryError", "BlockingIOError"}
)


def environment_of_trainer() -> dict[str, str]:
    """Return what the trainer is told of this process's environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }


def _start(theirs: socket.socket) -> "subprocess.Popen[bytes]":
    protect_memory()
    descriptor = theirs.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "tapestry_node.training", str(descriptor)],
        env=environment_of_trainer(),
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        close_fds=True,
    )


class _Child:
    """A process that this one has started."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = _start(theirs)
        theirs.close()
        self._line = SocketLine(ours)
        self.pid = self._process.pid

    def line(self) -> Line:
        return self._line

    def lost(self) -> TrainerLostError:
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code == -9:
            return OutOfMemoryError(
                "the trainer's process was killed; mostly that is the system short of memory"
            )
        return TrainerLostError(f"the trainer's process ended with code {code}")

    def stop(self) -> None:
        self._line.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class _Elsewhere:
    """A process that a launcher starts."""

    def __init__(self, launching: Launching) -> None:
        protect_memory()
        self._launching = launching

    def line(self) -> Line:
        return self._launching.line()

    def lost(self) -> TrainerLostError:
        return TrainerLostError("the trainer's processes have ended; the launcher's log says why")

    def stop(self) -> None:
        self._launching.drop()
