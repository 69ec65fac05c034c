"""What a stage writes while it runs: metrics, checkpoints that are whole, and when it must stop."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from transformers import TrainerCallback

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic

METRICS_FILE = "metrics.jsonl"
_WHOLE = "whole"
_KEEP_SECONDS = 300.0


class DivergedError(ConfigError):
    """The loss is no number any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What one optimizer step tells."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Who looks on: each is called between steps."""

    on_progress: Callable[[Progress], None] = lambda _: None
    is_stopped: Callable[[], bool] = lambda: False
    measure: Callable[[Any], float] | None = None
    """Given the module: what should fall on text that is held out."""


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Keeps checkpoints and metrics, tells of progress, and stops when it must."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        """Keep what a stage in `folder` writes, and tell `watch`."""
        self.folder, self.watch = folder, watch
        self.is_sound = True
        self.was_stopped = False
        self.tokens = 0
        self.seconds = 0.0
        self._kept_at = self._stepped_at = monotonic()
        self._since = 0

    def saw(self, tokens: int) -> None:
        """Count tokens that a micro-batch held."""
        self._since += tokens

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:  # noqa: ANN401, ARG002
        """Refuse a step that would make parameters that are no numbers."""
        grads = [p.grad for p in named["model"].parameters() if p.grad is not None]
        norms = torch._foreach_norm(grads)  # noqa: SLF001 - what clip_grad_norm_ stands on
        if not self.is_sound or not bool(torch.stack(norms).isfinite().all()):
            raise DivergedError(
                f"step {state.global_step + 1}: the loss is no number any more; the last good step "
                f"is kept in {self.folder}. Lower the stage's learning_rate, and look at the rows "
                "for text that is not language"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> Any:  # noqa: ANN401, ARG002
        """Keep a checkpoint now and then, and when somebody wants to stop."""
        now = monotonic()
        self.seconds += now - self._stepped_at
        speed = self._since / max(1e-9, now - self._stepped_at)
        self._stepped_at = now
        self.tokens += self._since
        self._speed, self._since = speed, 0
        if self.watch.is_stopped():
            self.was_stopped = True
            control.should_save = control.should_training_stop = True
        elif now - self._kept_at > _KEEP_SECONDS:
            control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:  # noqa: ANN401, ARG002
        """Write a line of metrics, with the measure on what is held out where it is due."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        line: dict[str, Any] = {
            "step": state.global_step,
            "loss": loss if math.isfinite(loss) else None,
            "learning_rate": float(logs.get("learning_rate", 0.0)),
            "tokens_per_second": round(self._speed, 1),
        }
        if self.watch.measure and state.global_step % max(1, state.max_steps // 8) == 0:
            model = named["model"]
            model.eval()
            line["held_out"] = self.watch.measure(model)
            model.train()
            self._stepped_at = monotonic()
        _append(self.folder / METRICS_FILE, line)
        self.watch.on_progress(
            Progress(
                step=state.global_step,
                steps=state.max_steps,
                loss=loss,
                tokens_per_second=self._speed,
            )
        )

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:  # noqa: ANN401, ARG002
        """Mark a checkpoint as whole, and drop the one before."""
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomic(kept / _WHOLE, json.dumps({"tokens": self.tokens, "seconds": self.seconds}))
        for other in kept.parent.glob("checkpoint-*"):
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)
        self._kept_at = monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:  # noqa: ANN401, ARG002
        """Go on counting where an earlier call stopped."""
        found = newest_whole(self.folder)
        if found is not None and state.global_step:
            kept = json.loads((found / _WHOLE).read_text(encoding="utf-8"))
            self.tokens, self.seconds = kept["tokens"], kept["seconds"]
            _cut_metrics(self.folder / METRICS_FILE, state.global_step)
        else:
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
        self._stepped_at = monotonic()


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end."""
    found = [path.parent for path in (folder / "checkpoints").glob(f"checkpoint-*/{_WHOLE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a stage's metrics; a line that a crash cut is left out."""
    path = folder / METRICS_FILE
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps that are done again."""
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
