"""The trainer's process: it reads the text and trains, and can reach nothing but the guard.

Started by `trainer_process.TrainerProcess`, which says first where the keys lie, or by a launcher
(`launched`); what it gives up before anything else is imported is in `isolation`. It holds no
credentials and knows no address.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from tapestry.errors import TapestryError
from tapestry.objectives.places import Place
from tapestry_node.followers import APART, RENDEZVOUS, ChildFollower, Followers
from tapestry_node.isolation import forbid_connections, isolate
from tapestry_node.messages import Line, LineHandler, SocketLine, error_name

_log = logging.getLogger(__name__)

WRITTEN_BY_TRAINER = ("corpus", "trainer", "spool")
"""Folders of the node's home; the rest of it, the records, can only be read here."""


def main(line: Line) -> None:
    """Serve the guard until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the guard hears it, and says what to do
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        hello = line.receive()
        isolation = isolate(
            Path(hello["keys"]), records=Path(hello["home"]), writable=WRITTEN_BY_TRAINER
        )
        forbid_connections(lambda call, to: line.send("blocked", call=call, to=to))
        logging.getLogger().handlers[:] = [LineHandler(line)]
        logging.getLogger("tapestry").setLevel(hello["log_level"])
        logging.getLogger("tapestry_node").setLevel(hello["log_level"])
        line.send(
            "done",
            network=isolation.network,
            keys=isolation.keys,
            obstacle=isolation.obstacle,
        )
        home = Path(hello["home"])
        serve(line, Session(line, home, Children(home, line)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the guard is gone
    finally:
        line.close()


def serve(line: Line, session: "Session") -> None:
    """Do what the guard asks, until it hangs up.

    Raises:
        EOFError: It has hung up; or an error of the line.
    """
    while True:
        asked = line.receive()
        kind = asked.pop("kind")
        if kind == "stop":  # came after what it was to stop
            continue
        try:
            answer = session.call(kind, asked)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - told to the guard, which decides
            name = error_name(error)
            session.settle(name, error)
            if name == "os" and not isinstance(error, OSError):
                _log.exception("a bug in the trainer")
            text = str(error) or type(error).__name__
            line.send("failed", error=name, text=text, kind_of=type(error).__name__)
        else:
            line.send("done", **answer)


class Others(Protocol):
    """The other processes that train with this one, before they are needed."""

    rendezvous: Path | None
    """As in `ranks.Group`."""

    def place(self, processes: int) -> Place:
        """Return the place of this one, where the settings say how many there are."""

    def begin(self, place: Place) -> Followers:
        """Have them hear."""

    def settle(self, followers: Followers, error: Exception) -> None:
        """After an error that nobody expected: end here if it came of the end of one of them."""


class Children:
    """Others that this process starts."""

    def __init__(self, home: Path, guard: Line) -> None:
        """Start none yet.

        Args:
            home: Of the node.
            guard: The line to it.
        """
        self._home = home
        self._guard = guard
        self.rendezvous: Path | None = home / RENDEZVOUS

    def place(self, processes: int) -> Place:
        """Return the first place of so many."""
        return Place.of(0, processes)

    def begin(self, place: Place) -> Followers:
        """Start them."""
        (self._home / RENDEZVOUS).unlink(missing_ok=True)
        return Followers(
            [ChildFollower(self._home, rank, place.size) for rank in range(1, place.size)],
            self._guard,
            report=lambda call, to: self._guard.send("blocked", call=call, to=to),
        )

    def settle(self, followers: Followers, _error: Exception) -> None:
        """Wait a moment for one that is ending."""
        followers.settle()


class Session:
    """What the guard can ask for; everything that takes torch is imported when it is needed."""

    def __init__(self, line: Line, home: Path, others: Others) -> None:
        """Begin with nothing.

        Args:
            line: To the guard.
            home: Of the node.
            others: The processes that train with this one, if there are any.
        """
        import tapestry.offline  # noqa: F401, PLC0415 - before transformers is imported
        from tapestry_node.home import NodeHome  # noqa: PLC0415

        self._line = line
        self._home = NodeHome(home)
        self._others = others
        self._trainer: Any = None
        self.followers: Followers | None = None
        """The other processes that train with this one."""
        self._begun: Any = None
        """The round that is trained."""
        self._losses: list[float] = []
        """Of its steps."""
        self.is_asked_to_end = False
        """Whether to end after this step, and keep it."""
        self.is_stepping = False

    def call(self, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Do one thing that the guard asks; return the answer."""
        calls: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self._open,
            "pool": self._pool,
            "measure": self._measure,
            "train": self._train,
            "write": self._write,
            "examine": self._examine,
        }
        return calls[kind](**asked)

    def _open(
        self,
        *,
        settings: dict[str, Any],
        objective: str,
        checkpoint: str,
        data: list[str],
        sequence_tokens: int,
    ) -> dict[str, Any]:
        from tapestry.objectives.ranks import ALONE, Group, Ranks  # noqa: PLC0415 - imports torch
        from tapestry_node.policy import NodeTable  # noqa: PLC0415
        from tapestry_node.trainer import Trainer  # noqa: PLC0415 - imports torch

        table = NodeTable.model_validate(settings)
        place = self._others.place(table.processes)

        def join(device: Any) -> Ranks:  # noqa: ANN401 - torch.device
            if place.size == 1:
                return ALONE
            if self.followers is None:
                self.followers = self._others.begin(place)
            self.followers.ask(
                "open",
                settings=settings,
                objective=objective,
                checkpoint=checkpoint,
                data=data,
                sequence_tokens=sequence_tokens,
            )
            return Group(place, self._others.rendezvous, device)

        self._trainer = Trainer(
            self._home,
            table,
            objective,
            Path(checkpoint),
            [Path(path) for path in data],
            sequence_tokens=sequence_tokens,
            place=place,
            join=join,
            on_packing=lambda doing, done, of: self._line.send(
                "packing", doing=doing, done=done, of=of
            ),
        )
        if self.followers is not None:
            self.followers.answers()
        return {}

    def _together(self, kind: str, own: Callable[[], Any], **asked: object) -> Any:  # noqa: ANN401
        """Do something that the other processes do at the same time, if there are any."""
        if self.followers is None:
            return own()
        self.followers.ask(kind, **asked)
        try:
            done = own()
        except Exception:
            if kind in APART:
                with suppress(TapestryError):
                    self.followers.answers()
            raise
        self.followers.answers()
        return done

    def settle(self, name: str, error: Exception) -> None:
        """After an error: end here if it came of the end of another process."""
        if self.followers is not None and name == "os":
            self._others.settle(self.followers, error)

    def _pool(self, *, path: str, digest: str) -> dict[str, Any]:
        self._trainer.use_pool(Path(path), digest)  # packed here first
        self._together("pool", lambda: None, path=path, digest=digest)
        return {}

    def _measure(self, *, checkpoint: str) -> dict[str, Any]:
        def own() -> Any:  # noqa: ANN401 - Evaluation
            return self._trainer.evaluate(Path(checkpoint))

        is_alone = not self._trainer.is_sharded
        found = own() if is_alone else self._together("measure", own, checkpoint=checkpoint)
        return {"bits": found.bits, "text_bytes": found.text_bytes}

    def _train(
        self, *, plan: str, checkpoint: str, previous_state: str | None, rows: int
    ) -> dict[str, Any]:
        from tapestry.checkpoints.statements import RoundPlan  # noqa: PLC0415

        opened = RoundPlan.model_validate_json(plan)
        self._begun, self._losses = None, []
        self._trainer.refresh_corpus()  # packed here first
        self._begun = self._together(
            "begin",
            lambda: self._trainer.begin(
                opened,
                Path(checkpoint),
                previous_state=None if previous_state is None else Path(previous_state),
            ),
            plan=plan,
            checkpoint=checkpoint,
            previous_state=previous_state,
        )
        self._line.send("begun", seconds=self._begun.done.seconds)
        self.is_stepping = True
        try:
            self._losses = losses = self._together(
                "steps",
                lambda: self._trainer.take_steps(self._begun, on_step=self._tell, rows=rows),
                rows=rows,
            )
        finally:
            self.is_stepping = False
        if self.is_asked_to_end:
            raise EOFError("asked to end")
        return {"steps": len(losses), "loss_first": losses[0], "loss_last": losses[-1]}

    def _tell(self, report: Any) -> bool:  # noqa: ANN401 - StepReport, which imports torch
        """Tell a step; go on unless the guard says stop, or is gone."""
        self._line.send("step", step=report.step, loss=report.loss, tokens=report.tokens)
        if self.is_asked_to_end:
            self._begun.unfinished.keeps_last = True
            return False
        if not self._line.has_more():
            return True
        told = self._line.receive()
        self._begun.unfinished.keeps_last = told.get("keep", False)
        return bool(told["kind"] != "stop")

    def _write(self, *, file: str) -> dict[str, Any]:
        def own() -> Any:  # noqa: ANN401 - Made
            return self._trainer.write(
                self._begun.plan,
                self._begun.base,
                self._begun.optimizer,
                self._losses,
                Path(file),
                on_fragment=lambda index: self._line.send("fragment", index=index),
            )

        made = self._together("write", own) if self._trainer.is_sharded else own()
        return {
            "tokens": made.tokens,
            "steps": made.steps,
            "documents": made.documents,
            "loss_first": made.loss_first,
            "loss_last": made.loss_last,
            "use": None if made.use is None else asdict(made.use),
            "statistics": {name: list(values) for name, values in made.statistics.items()},
        }

    def _examine(
        self,
        *,
        base: str,
        consensus: str | None,
        fragments: str | None,
        codec: str,
        inner: str,
        canaries: dict[str, list[str]] | None,
        seed: int,
    ) -> dict[str, Any]:
        """Measure what a contribution gives away; without `fragments` it is made again first."""
        from tapestry.checkpoints.statements import InnerSettings  # noqa: PLC0415
        from tapestry_node.leakage import examine  # noqa: PLC0415 - imports torch

        return dict(
            examine(
                self._trainer,
                Path(base),
                None if consensus is None else Path(consensus),
                None if fragments is None else Path(fragments),
                codec=codec,
                inner=InnerSettings.model_validate_json(inner),
                canaries=canaries,
                seed=seed,
                on_progress=lambda doing, done, of: self._line.send(
                    "examining", doing=doing, done=done, of=of
                ),
            )
        )


if __name__ == "__main__":
    main(SocketLine(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(0)  # nothing is left to write, and torch takes its time to leave
