"""`tapestry node trainer`: a process of the trainer that a launcher starts, on any of its hosts.

The launcher says who is who in the environment, as torchrun does, or SLURM. Of the node, it has the
folder, on a disk that all hosts see under the same path; over files in there the first process
speaks with the guard, and with the others (`shared_line`). Keys and records are taken away as in
`training`; the network cannot be, since the processes train over it: Python's own calls are stopped
and reported, and no address is known here.
"""

import json
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.errors import ConfigError
from tapestry.objectives.places import Place
from tapestry.storage.atomic import write_atomic
from tapestry_node.followers import Followers
from tapestry_node.following import follow
from tapestry_node.isolation import Isolation, forbid_connections, isolate
from tapestry_node.messages import Line, LineHandler
from tapestry_node.shared_line import (
    GUARD,
    GUARD_FILE,
    NEWEST_FILE,
    TRAINER,
    Pulse,
    SharedLine,
)
from tapestry_node.training import WRITTEN_BY_TRAINER, Session, serve

_log = logging.getLogger(__name__)

_OVER_NETWORK = "a launcher has started it, and its processes speak over the network"
_POLL_SECONDS = 0.5
_SAID_EVERY_SECONDS = 60.0
_SEES_SECONDS = 30.0
"""A host may see a new folder of another one late."""
_TELL_SECONDS = 2.0
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Guard:
    """What the guard says of itself."""

    home: Path
    session: str
    processes: int
    device: str


def place_from(environment: "os._Environ[str] | dict[str, str]") -> Place:
    """Return which of its processes a launcher has made this one.

    Raises:
        ConfigError: It says nothing, or nothing that can be.
    """
    for names in _VARIABLES:
        if all(name in environment for name in names[:3]):
            break
    else:
        raise ConfigError(
            "neither RANK, WORLD_SIZE and LOCAL_RANK nor SLURM's variables are set: this is for a "
            "launcher to start, as in: torchrun --nproc-per-node 4 --no-python tapestry node "
            "trainer FOLDER; without one, use `tapestry node run --nproc 4`"
        )
    try:
        rank, size, local = (int(environment[name]) for name in names[:3])
        local_size = int(environment.get(names[3], 1))
    except ValueError as error:
        raise ConfigError(f"{', '.join(names)}: a number is expected: {error}") from error
    if not 0 <= rank < size:
        raise ConfigError(f"{names[0]} = {rank} and {names[1]} = {size} cannot be")
    if not all(environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
        raise ConfigError(
            "MASTER_ADDR and MASTER_PORT are not set: the host of the first process, as the others "
            "reach it, and a free port there (torchrun sets both)"
        )
    environment.setdefault("RANK", str(rank))
    environment.setdefault("WORLD_SIZE", str(size))
    return Place(rank=rank, size=size, local_rank=local, local_size=max(local + 1, local_size))


def main(folder: Path, place: Place) -> int:
    """Train for the guard of the node in `folder` until it ends; return the exit code.

    Returns:
        0 if the guard has ended; 1 if it has gone without a word, or wants other processes: a
        launcher that starts them anew then does what is needed.

    Raises:
        ConfigError: Folder, guard and launcher do not fit.
    """
    home = folder.resolve()
    if not (home / "trainer").is_dir():
        raise ConfigError(
            f"{socket.gethostname()}: {folder}: no node's folder is seen here: it has to lie on a "
            "disk that this host shares with the guard's, under the same path"
        )
    guard = wait_for_guard(home, place)
    isolation = isolate(
        home / "identity", records=home, writable=WRITTEN_BY_TRAINER, has_network=True
    )
    member = _Member(home, guard, place, isolation)
    return member.lead() if place.rank == 0 else member.follow()


def wait_for_guard(home: Path, place: Place) -> _Guard:
    """Return what the guard says, once one is known to live.

    Raises:
        ConfigError: It wants other processes than the launcher has started.
    """
    path = home / "trainer" / "launched" / GUARD_FILE
    pulse, said = Pulse(path), -_SAID_EVERY_SECONDS
    while True:
        pulse.is_gone()
        guard = _read(path)
        if guard is not None:
            _require_fit(guard, home, place)
            if pulse.beats > 0:
                return guard
        elif time.monotonic() - said > _SAID_EVERY_SECONDS:
            said = time.monotonic()
            _log.warning("waiting for the guard: tapestry node run %s", home)
        time.sleep(_POLL_SECONDS)


def _read(path: Path) -> _Guard | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        table = json.loads(path.read_bytes())
        return _Guard(
            home=Path(table["home"]),
            session=str(table["session"]),
            processes=int(table["processes"]),
            device=str(table["device"]),
        )
    return None


def _require_fit(guard: _Guard, home: Path, place: Place) -> None:
    if guard.home != home:
        raise ConfigError(
            f"{home}: the guard works in {guard.home}: this is another node's job, or the folder "
            "has another path here; it has to have the same on all hosts"
        )
    if guard.processes != place.size:
        raise ConfigError(
            f"the launcher has started {place.size} process(es), and the guard was told of "
            f"{guard.processes}: set [node] processes (or --nproc) in {home} to {place.size}, or "
            "launch as many"
        )


class _Member:
    """One of the processes, once the launcher's group is known."""

    def __init__(self, home: Path, guard: _Guard, place: Place, isolation: Isolation) -> None:
        """Meet the others, and agree with them on a folder.

        Raises:
            ConfigError: One of them does not see it.
        """
        self._home, self._guard, self._place = home, guard, place
        self._lines: list[SharedLine] = []
        self._session: Session | None = None
        self._pulse = Pulse(home / "trainer" / "launched" / GUARD_FILE)
        self._unsaid: list[tuple[str, str]] = []
        forbid_connections(self._blocked)
        self._group = self._meet()
        name = self._group.told(secrets.token_bytes(8)).hex()
        self._folder = home / "trainer" / "launched" / name
        if place.rank == 0:
            self._folder.mkdir(mode=0o700)
        sees = self._sees() if place.rank else True
        found = self._group.answers(2 * sees + isolation.keys)
        blind = [rank for rank, answer in enumerate(found) if answer < 2]
        if blind:
            raise ConfigError(
                f"process {blind[0]} of {place.size} does not see {self._folder}, which process 0 "
                f"has made: {home} has to lie on a disk that all hosts share"
            )
        is_hidden = all(answer & 1 for answer in found)
        keys = "" if is_hidden else f"; keys are not hidden on every host ({isolation.obstacle})"
        self._isolation = Isolation(network=False, keys=is_hidden, obstacle=_OVER_NETWORK + keys)

    def _meet(self) -> Any:  # noqa: ANN401 - Group, which imports torch
        import tapestry.offline  # noqa: F401, PLC0415 - before transformers is imported
        from tapestry.objectives.ranks import Group  # noqa: PLC0415
        from tapestry.objectives.training import choose_device  # noqa: PLC0415

        local = self._place
        device = choose_device(
            self._guard.device, rank=local.local_rank, processes=local.local_size
        )
        return Group(local, None, device)

    def _sees(self) -> bool:
        deadline = time.monotonic() + _SEES_SECONDS
        while not self._folder.is_dir():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def lead(self) -> int:
        """Do what the guard asks, as the first process."""
        others = [
            self._line(f"first-{rank:04}", f"rank-{rank:04}") for rank in range(1, self._place.size)
        ]
        line = self._line(TRAINER, GUARD, is_over=self._is_guard_gone)
        table = json.dumps({"attempt": self._folder.name}) + "\n"
        write_atomic(self._folder.parent / NEWEST_FILE, table)
        team = _Team(self._place, others, line)
        self._on_end(self._end_first)
        try:
            hello = line.receive()
            for name in ("tapestry", "tapestry_node"):
                logging.getLogger(name).setLevel(hello["log_level"])
            logging.getLogger().handlers[:] = [LineHandler(line)]
            found = self._isolation
            line.send("done", network=found.network, keys=found.keys, obstacle=found.obstacle)
            self._session = Session(line, self._home, team)
            serve(line, self._session)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self._hung_up(line)
        return 0

    def follow(self) -> int:
        """Do what the first process asks."""
        rank = f"{self._place.rank:04}"
        line = self._line(f"rank-{rank}", f"first-{rank}")
        self._on_end(lambda: None)  # the first process is told as well, and ends us
        try:
            follow(line, self._home, self._place, rendezvous=None)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self._hung_up(line)
        return 0

    def _line(
        self, own: str, other: str, *, is_over: Callable[[], bool] = lambda: False
    ) -> SharedLine:
        """Begin a line; what could not be told before goes over the first."""
        line = SharedLine(self._folder, own=own, other=other, is_over=is_over)
        self._lines.append(line)
        for call, to in self._unsaid:
            line.send("blocked", call=call, to=to)
        self._unsaid.clear()
        return line

    def _is_guard_gone(self) -> bool:
        """Whether the guard that this was launched for is gone."""
        found = _read(self._pulse.path)
        return found is None or found.session != self._guard.session or self._pulse.is_gone()

    def _blocked(self, call: str, to: str) -> None:
        """Have an attempt to connect put on record."""
        if self._lines:
            self._lines[-1].send("blocked", call=call, to=to)
        else:
            self._unsaid.append((call, to))

    def _hung_up(self, line: SharedLine) -> int:
        """Let the others end like this process; return its exit code."""
        if self._session is not None and self._session.followers is not None:
            self._session.followers.hush()
        for one in self._lines:
            one.close(goes_on=not line.was_ended)
        return 0 if line.was_ended else 1

    def _on_end(self, do: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: do())

    def _end_first(self) -> None:
        """End now, or after the step that is being taken, which is kept."""
        if self._session is not None and self._session.is_stepping:
            self._session.is_asked_to_end = True
            return
        for line in self._lines:
            line.close(goes_on=True)
        os._exit(1)


class _Team:
    """The other processes of the launcher's."""

    rendezvous: Path | None = None

    def __init__(self, place: Place, lines: list[SharedLine], guard: Line) -> None:
        self._place = place
        self._lines = lines
        self._guard = guard

    def place(self, _processes: int) -> Place:
        """Return where the first one stands."""
        return self._place

    def begin(self, _place: Place) -> Followers:
        """Hear them."""
        return Followers(
            [_Launched(line) for line in self._lines],
            self._guard,
            report=lambda call, to: self._guard.send("blocked", call=call, to=to),
        )

    def settle(self, _followers: Followers, error: Exception) -> None:
        """End: an error that nobody expected mostly is that another process has ended."""
        time.sleep(_TELL_SECONDS)  # whoever knows why says so, which ends this process
        _log.warning("training together failed", exc_info=error)
        text = f"training together failed: {type(error).__name__}: {str(error)[:300]}"
        with suppress(OSError):
            self._guard.send("failed", error="lost", text=text, kind_of="")
        os._exit(1)


class _Launched:
    """One of them."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def is_ending(self) -> bool:
        """Whether it has ended: only the launcher knows."""
        return False

    def end(self) -> tuple[str, str]:
        """Return what is known of one that has hung up."""
        return "lost", "has ended, or its host does not answer; the launcher's log says more"
