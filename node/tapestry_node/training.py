"""The trainer's process: it reads the text and trains, and can reach nothing but the guard.

Started by `trainer_process.TrainerProcess`, which says first where the keys lie; what it gives up
before anything else is imported is in `isolation`. It holds no credentials and knows no address.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tapestry_node.isolation import forbid_connections, isolate
from tapestry_node.messages import Line, error_name

_log = logging.getLogger(__name__)


def main(line: Line) -> None:
    """Serve the guard until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the guard hears it, and says what to do
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        hello = line.receive()
        isolation = isolate(Path(hello["keys"]))
        forbid_connections(lambda call, to: line.send("blocked", call=call, to=to))
        logging.getLogger().handlers[:] = [_ToGuard(line)]
        logging.getLogger("tapestry").setLevel(hello["log_level"])
        logging.getLogger("tapestry_node").setLevel(hello["log_level"])
        line.send(
            "done",
            network=isolation.network,
            keys=isolation.keys,
            obstacle=isolation.obstacle,
        )
        _serve(line, Path(hello["home"]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the guard is gone
    finally:
        line.close()


def _serve(line: Line, home: Path) -> None:
    import tapestry.offline  # noqa: F401, PLC0415 - before transformers is imported
    from tapestry_node.home import NodeHome  # noqa: PLC0415

    session = _Session(line, NodeHome(home))
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
            name = "memory" if _is_memory(error) else error_name(error)
            if name == "os" and not isinstance(error, OSError):
                _log.exception("a bug in the trainer")
            text = str(error) or type(error).__name__
            line.send("failed", error=name, text=text, kind_of=type(error).__name__)
        else:
            line.send("done", **answer)


def _is_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "alloc" in text and "memory" in text)
    )


class _Session:
    """What the guard can ask for; everything that takes torch is imported when it is needed."""

    def __init__(self, line: Line, home: Any) -> None:  # noqa: ANN401 - NodeHome, imported late
        self._line = line
        self._home = home
        self._trainer: Any = None
        self._round: Any = None
        """Optimizer, base and losses of the round that was trained last."""

    def call(self, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        calls: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self._open,
            "pool": self._pool,
            "measure": self._measure,
            "train": self._train,
            "write": self._write,
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
        from tapestry_node.policy import NodeTable  # noqa: PLC0415
        from tapestry_node.trainer import Trainer  # noqa: PLC0415 - imports torch

        self._trainer = Trainer(
            self._home,
            NodeTable.model_validate(settings),
            objective,
            Path(checkpoint),
            [Path(path) for path in data],
            sequence_tokens=sequence_tokens,
        )
        return {}

    def _pool(self, *, path: str, digest: str) -> dict[str, Any]:
        self._trainer.use_pool(Path(path), digest)
        return {}

    def _measure(self, *, checkpoint: str) -> dict[str, Any]:
        found = self._trainer.evaluate(Path(checkpoint))
        return {"bits": found.bits, "text_bytes": found.text_bytes}

    def _train(
        self, *, plan: str, checkpoint: str, previous_state: str | None, rows: int
    ) -> dict[str, Any]:
        from tapestry.checkpoints.statements import RoundPlan  # noqa: PLC0415

        opened = RoundPlan.model_validate_json(plan)
        self._round = None
        optimizer, base, losses = self._trainer.train_round(
            opened,
            Path(checkpoint),
            previous_state=None if previous_state is None else Path(previous_state),
            on_step=self._tell,
            rows=rows,
        )
        self._round = (opened, optimizer, base, losses)
        return {"steps": len(losses), "loss_first": losses[0], "loss_last": losses[-1]}

    def _tell(self, report: Any) -> bool:  # noqa: ANN401 - StepReport, which imports torch
        """Tell a step; go on unless the guard says stop, or is gone."""
        self._line.send("step", step=report.step, loss=report.loss, tokens=report.tokens)
        return not (self._line.has_more() and self._line.receive()["kind"] == "stop")

    def _write(self, *, file: str) -> dict[str, Any]:
        plan, optimizer, base, losses = self._round
        made = self._trainer.write(
            plan,
            base,
            optimizer,
            losses,
            Path(file),
            on_fragment=lambda index: self._line.send("fragment", index=index),
        )
        return {
            "tokens": made.tokens,
            "steps": made.steps,
            "documents": made.documents,
            "loss_first": made.loss_first,
            "loss_last": made.loss_last,
            "use": None if made.use is None else asdict(made.use),
            "statistics": {name: list(values) for name, values in made.statistics.items()},
        }


class _ToGuard(logging.Handler):
    """Sends what would be logged to the guard, whose log it goes into."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        try:
            self._line.send("log", level=record.levelno, text=text)
        except (OSError, ValueError):
            os._exit(1)  # nobody is there to tell


if __name__ == "__main__":
    main(Line(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(0)  # nothing is left to write, and torch takes its time to leave
