"""The demonstration's federation: real processes on this machine, over mutual TLS."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tapestry.errors import TapestryError
from tapestry.identity.invitations import decode, encode
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome, require_home
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.web.settings import PageSettings
from tapestry_demo.workers import Forked, Workers
from tapestry_node.home import NodeHome
from tapestry_node.joining import join

_STOP_SECONDS = 10.0
_PORTS = range(12_000, 31_998)
"""None that systems give to outgoing connections: what is free stays so until a process is up."""
_PORTS_EACH = 3
_PAIRS = count(secrets.randbelow(len(_PORTS)))
_now = time.time  # noqa: TID251 - the edge that owns the clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Institution:
    """A member of the demonstration and its text."""

    member_id: str
    language: str
    text: Path
    """File or folder."""

    def home(self, folder: Path) -> Path:
        """Return its node's folder."""
        return folder / "nodes" / self.member_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much the demonstration does."""

    rounds: int
    inner_steps: int
    sequences: int
    learning_rate: float
    held_out_bytes: int
    bytes_per_language: int
    localize_steps: int

    @property
    def steps(self) -> int:
        """Inner steps of each node over all rounds."""
        return self.rounds * self.inner_steps


def tapestry_command(*arguments: str) -> list[str]:
    """Return the command line of a `tapestry` call in this interpreter."""
    return [sys.executable, "-m", "tapestry.cli.main", *arguments]


def call(*arguments: str) -> str:
    """Run a `tapestry` command to its end; return what it printed.

    Raises:
        TapestryError: It failed, with its last line.
    """
    done = subprocess.run(tapestry_command(*arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TapestryError(_failure(arguments, done.stderr, done.returncode))
    return done.stdout


def _failure(arguments: Sequence[str], output: str, code: int | None) -> str:
    lines = output.strip().splitlines() or [f"exit code {code}"]
    return f"`tapestry {' '.join(arguments[:2])}` failed: {lines[-1]}"


def found_federation(
    workers: Workers, folder: Path, pool: Path | None, scale: Scale, *, members: int
) -> None:
    """Make the coordinator's folder with settings that suit a demonstration."""
    port = free_port_pair()
    arguments = ["coordinator", "init", str(folder), "--name", "demo", "--size", "tiny"]
    arguments += ["--address", f"localhost:{port}", "--rounds", str(scale.rounds)]
    arguments += ["--inner-steps", str(scale.inner_steps), "--quorum", str(max(2, members - 1))]
    if pool is not None:
        arguments += ["--pool", str(pool)]
    workers.call(*arguments)
    settings = settings_module.load(folder)
    network = settings.network.model_copy(
        update={"listen": f"127.0.0.1:{port}", "enrolment_listen": f"127.0.0.1:{port + 1}"}
    )
    inner = settings.inner.model_copy(
        update={"sequences": scale.sequences, "learning_rate": scale.learning_rate}
    )
    rounds = settings.rounds.model_copy(update={"gather_seconds": 60.0, "grace_seconds": 30.0})
    settings_module.save(
        folder,
        settings.model_copy(
            update={
                "network": network,
                "inner": inner,
                "rounds": rounds,
                "page": PageSettings(enabled=False),
            }
        ),
    )


def join_all(folder: Path, institutions: Sequence[Institution], scale: Scale) -> None:
    """Invite and enrol every institution, as the two commands do; the coordinator must listen."""
    coordinator = coordinator_home(folder)
    for institution in institutions:
        home = NodeHome(institution.home(folder))
        invitation = make_invitation(coordinator, institution.member_id, now=_now())
        join(decode(encode(invitation)), home.folder, now=_now())
        settings = home.load_settings()
        changed = {"language": institution.language, "held_out_bytes": scale.held_out_bytes}
        table = settings.node.model_copy(update=changed)
        home.save_settings(settings.model_copy(update={"node": table}))


class Processes:
    """Child processes that end when the block does, however it does."""

    def __init__(self, logs: Path) -> None:
        """Write each process's output to a file in `logs`."""
        self._logs = logs
        self._stack = ExitStack()
        self.running: dict[str, subprocess.Popen[bytes] | Forked] = {}

    def __enter__(self) -> Self:
        """Make the folder for logs."""
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ask all to stop, wait a little, and end those that did not."""
        self.stop()
        self._stack.close()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process of its own session, so that Ctrl-C reaches it only through us."""
        log: IO[bytes] = self._stack.enter_context((self._logs / f"{name}.log").open("wb"))
        self.running[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def fork(self, name: str, workers: Workers, arguments: Sequence[str]) -> None:
        """Start a `tapestry` command in a process that has torch imported already."""
        self.running[name] = workers.start(arguments, self._logs / f"{name}.log")

    def stop(self) -> None:
        """End all processes."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def require_alive(self, name: str) -> None:
        """Refuse to go on without a process that failed.

        Raises:
            TapestryError: It ended with an error; its last line is in the message.
        """
        process = self.running[name]
        if process.poll() not in (None, 0):
            lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
            cause = lines[-1] if lines else f"exit code {process.returncode}"
            raise TapestryError(f"{name} failed: {cause} (see {self._logs / f'{name}.log'})")

    def is_done(self, name: str) -> bool:
        """Whether a process ended without an error."""
        self.require_alive(name)
        return self.running[name].poll() == 0


def wait_for_port(processes: Processes, home: CoordinatorHome, *, seconds: float) -> None:
    """Wait until the coordinator listens.

    Raises:
        TapestryError: It failed, or does not listen in time.
    """
    host, port = home.load_settings().network.enrolment_listen.rsplit(":", 1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        processes.require_alive("coordinator")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)
    raise TapestryError(f"the coordinator does not listen on {host}:{port} after {seconds:.0f} s")


def coordinator_home(folder: Path) -> CoordinatorHome:
    """Return the demonstration's coordinator."""
    return require_home(folder / "coordinator")


def free_port_pair() -> int:
    """Return a port that is free together with the next one; no other process gets the two.

    The port after them is held by this process as long as it lives: whoever else asks finds it
    taken, and goes on. What listens at the two can end and begin again.
    """
    while True:
        port = _PORTS[_PORTS_EACH * next(_PAIRS) % len(_PORTS)]
        with ExitStack() as probed, suppress(OSError):
            held, *both = (probed.enter_context(socket.socket()) for _each in range(_PORTS_EACH))
            held.bind(("127.0.0.1", port + 2))
            for number, end in enumerate(both):
                end.bind(("127.0.0.1", port + number))
            held.detach()  # open until the process ends
            return port
