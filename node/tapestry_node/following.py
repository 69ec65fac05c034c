"""A process that trains together with the trainer's first one, and does what that one asks."""

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from tapestry.errors import TapestryError
from tapestry.objectives.places import Place
from tapestry_node.followers import APART, RENDEZVOUS
from tapestry_node.isolation import end_with_parent, forbid_connections
from tapestry_node.messages import Line, LineHandler, SocketLine, error_name


def main(line: Line) -> None:
    """Serve the trainer's first process until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    try:
        hello = line.receive()
        forbid_connections(lambda call, to: line.send("blocked", call=call, to=to))
        home = Path(hello["home"])
        place = Place.of(hello["rank"], hello["size"])
        follow(line, home, place, rendezvous=home / RENDEZVOUS)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the first process is gone
    finally:
        line.close()


def follow(line: Line, home: Path, place: Place, *, rendezvous: Path | None) -> None:
    """Do what the first process asks, until it hangs up.

    Args:
        line: To the first process.
        home: Of the node.
        place: Of this process.
        rendezvous: As in `ranks.Group`.

    Raises:
        EOFError: It has hung up; or an error of the line.
    """
    logging.getLogger().handlers[:] = [LineHandler(line)]
    work = _Work(home, place, rendezvous)
    while True:
        asked = line.receive()
        kind = asked.pop("kind")
        try:
            getattr(work, kind)(**asked)
        except Exception as error:  # noqa: BLE001 - told to the first process, which decides
            text = str(error) or type(error).__name__
            line.send("failed", at=kind, error=error_name(error), text=text)
            if kind not in APART or not isinstance(error, TapestryError):
                os._exit(1)  # the others are waiting for this one in vain
        else:
            line.send("done")


class _Work:
    """What the first process asks for; all of them do it at the same time."""

    def __init__(self, home: Path, place: Place, rendezvous: Path | None) -> None:
        import tapestry.offline  # noqa: F401, PLC0415 - before transformers is imported
        from tapestry_node.home import NodeHome  # noqa: PLC0415

        self._home = NodeHome(home)
        self._place = place
        self._rendezvous = rendezvous
        self._trainer: Any = None
        self._begun: Any = None

    def open(self, **asked: Any) -> None:  # noqa: ANN401
        """Find the corpus packed; build the model and join the group."""
        from tapestry.objectives.ranks import Group  # noqa: PLC0415 - imports torch
        from tapestry_node.policy import NodeTable  # noqa: PLC0415
        from tapestry_node.trainer import Trainer  # noqa: PLC0415

        settings = NodeTable.model_validate(asked["settings"])
        self._trainer = Trainer(
            self._home,
            settings,
            asked["objective"],
            Path(asked["checkpoint"]),
            [Path(path) for path in asked["data"]],
            sequence_tokens=asked["sequence_tokens"],
            place=self._place,
            join=lambda device: Group(self._place, self._rendezvous, device),
        )

    def pool(self, *, path: str, digest: str) -> None:
        """Find the pool packed."""
        self._trainer.use_pool(Path(path), digest)

    def measure(self, *, checkpoint: str) -> None:
        """Have a part in measuring."""
        self._trainer.evaluate(Path(checkpoint))

    def begin(self, *, plan: str, checkpoint: str, previous_state: str | None) -> None:
        """Prepare a round's inner steps."""
        from tapestry.checkpoints.statements import RoundPlan  # noqa: PLC0415

        self._begun = self._trainer.begin(
            RoundPlan.model_validate_json(plan),
            Path(checkpoint),
            previous_state=None if previous_state is None else Path(previous_state),
        )

    def steps(self, *, rows: int) -> None:
        """Take them, together."""
        self._trainer.take_steps(self._begun, rows=rows)

    def write(self) -> None:
        """Give one's part of the result."""
        self._trainer.help_write(self._begun.plan, self._begun.optimizer)


if __name__ == "__main__":
    main(SocketLine(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(0)
