"""The inner steps: plain PyTorch training of any objective, resumable to the step.

Everything that trains uses this one loop: a node in a round, a node on its own, a community that
carries the consensus on in its language.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tapestry.checkpoints.statements import InnerSettings
from tapestry.errors import ConfigError
from tapestry.objectives.fitting import Precision, choose_precision
from tapestry.objectives.objective import Batches, Objective
from tapestry.objectives.ranks import ALONE, Ranks
from tapestry.objectives.reports import StepReport
from tapestry.params.sharding import placed
from tapestry.params.tensor_file import take_part, write_tensors

SMALL_MODEL_ELEMENTS = 10_000_000
"""Below this many parameters a second thread costs more than it brings."""


class Keeper(Protocol):
    """Keeps what was done so far, so that a crash costs minutes."""

    def is_due(self, *, goes_on: bool) -> bool:
        """Whether to keep it now, after a step; asked in the first process only."""
        ...

    def keep(self, losses: Sequence[float]) -> None:
        """Keep it; called in every process."""
        ...


class InnerOptimizer:
    """AdamW (arXiv 1711.05101) over a module, with its state kept between rounds.

    Weight decay applies to matrices only. The learning rate warms up linearly over
    `warmup_steps`, counted over all rounds, and is constant afterwards: the horizon of a
    federation is not known.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        settings: InnerSettings,
        *,
        precision: Precision = "auto",
        ranks: Ranks = ALONE,
    ) -> None:
        """Start with empty moments at step 0.

        Args:
            module: On its device already.
            settings: The plan's.
            precision: What the module multiplies in.
            ranks: The processes that train it together.
        """
        self.settings = settings
        self.device = next(module.parameters()).device
        self.dtype = choose_precision(precision, self.device)
        self._ranks = ranks
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype == torch.float16
        )  # float16 loses small gradients
        self.steps_done = 0
        self._named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        matrices = [p for p in self._named.values() if p.ndim >= 2]
        others = [p for p in self._named.values() if p.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Sum the gradients of all processes, clip them, update the parameters, forget them."""
        warmup = self.settings.warmup_steps
        scale = min(1.0, (self.steps_done + 1) / warmup) if warmup else 1.0
        for group in self._adamw.param_groups:
            group["lr"] = self.settings.learning_rate * scale
        self._ranks.sum_gradients(list(self._named.values()))
        self._scaler.unscale_(self._adamw)
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self._named.values(), self.settings.gradient_clip)
        self._scaler.step(self._adamw)
        self._scaler.update()
        self._adamw.zero_grad(set_to_none=True)
        self.steps_done += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the moments by `parameter|field`; parts of them if the module is sharded."""
        return {
            f"{name}|{field}": value.detach()
            for name, parameter in self._named.items()
            for field, value in self._adamw.state.get(parameter, {}).items()
        }

    def metadata(self) -> dict[str, str]:
        """Return what belongs to the moments."""
        table = {"steps_done": str(self.steps_done)}
        if self._scaler.is_enabled():
            state = self._scaler.state_dict()
            table["loss_scale"] = f"{state['scale']!r} {state['_growth_tracker']}"
        return table

    def save(self, path: Path) -> None:
        """Write the moments and the step count to `path` (safetensors), atomically.

        Every process calls it, the first one writes: the file is the same, however many they are.
        """
        if self._ranks.rank == 0:
            write_tensors(path, self.tensors(), self.metadata())
        else:
            take_part(self.tensors())

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote, with any number of processes.

        Raises:
            ConfigError: The file is damaged or belongs to another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                self.restore(file.keys(), file.get_tensor, file.metadata())
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: not the optimizer state of this model ({error}); remove it to start "
                "with fresh moments"
            ) from error

    def restore(
        self,
        keys: Iterable[str],
        read: Callable[[str], torch.Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        """Take up moments by `parameter|field`, and what belongs to them.

        Raises:
            KeyError: A parameter is not one of this module's.
            ValueError: A moment has not the shape of its parameter.
        """
        self.steps_done = int(metadata["steps_done"])
        for key in keys:
            name, field = key.rsplit("|", 1)
            parameter, value = self._named[name], read(key)
            if field == "step":
                self._adamw.state[parameter][field] = value.to(self.device)
                continue
            if value.shape != parameter.shape:
                raise ValueError(f"{key} has shape {tuple(value.shape)}")
            self._adamw.state[parameter][field] = placed(value, parameter)
        if "loss_scale" in metadata and self._scaler.is_enabled():
            scale, steps = metadata["loss_scale"].split()
            state = {**self._scaler.state_dict(), "scale": float(scale)}
            self._scaler.load_state_dict({**state, "_growth_tracker": int(steps)})


def choose_device(name: str = "auto", *, rank: int = 0, processes: int = 1) -> torch.device:
    """Return the device called `name`; `auto` takes an accelerator if there is one.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        rank: Of several processes, each of which takes a GPU of its own.
        processes: How many there are.

    Raises:
        ConfigError: The device is not there.
    """
    device = _device_named(name)
    if processes == 1 or device.type != "cuda":
        return device
    there = torch.cuda.device_count()
    if ":" in name:
        raise ConfigError(
            f'{processes} processes cannot share device {name!r}: set [node] device = "cuda", or '
            "processes = 1"
        )
    if there < processes:
        raise ConfigError(
            f"{processes} processes need a GPU each, here are {there}: set [node] processes (or "
            f"--nproc) to {there}"
        )
    return torch.device("cuda", rank)


def _device_named(name: str) -> torch.device:
    if name == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


def choose_threads(elements: int, *, wanted: int = 0, processes: int = 1) -> int:
    """Set and return the number of CPU threads for a model of `elements` parameters.

    Args:
        elements: Length of the parameter vector.
        wanted: 0 chooses: one for small models, which run slower with more; else all cores.
        processes: That share the cores.
    """
    cores = max(1, usable_cores() // processes)
    threads = wanted or (1 if elements < SMALL_MODEL_ELEMENTS else cores)
    torch.set_num_threads(threads)
    return threads


def usable_cores() -> int:
    """Return how many cores this process may use: a scheduler may have left it one of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def train(
    objective: Objective,
    module: torch.nn.Module,
    optimizer: InnerOptimizer,
    batches: Batches,
    *,
    first_batch: int,
    on_step: Callable[[StepReport], bool] | None = None,
    rows: int = 0,
    ranks: Ranks = ALONE,
    done: Sequence[float] = (),
    keeper: Keeper | None = None,
) -> list[float]:
    """Take `optimizer.settings.steps` inner steps.

    Args:
        objective: Computes the loss.
        module: Changed in place; on its device already.
        optimizer: Of that module.
        batches: Where micro-batches come from.
        first_batch: Number of the first micro-batch; the caller counts them over all rounds.
        on_step: Called after each step in the first process; returning False ends the training
            early.
        rows: Sequences that go through the model at once; 0: a whole micro-batch. Fewer take less
            memory and give the same step, up to the order in which floats are added.
        ranks: The processes that train it together.
        done: Losses of steps that module and optimizer have taken already.
        keeper: Asked after each step whether to keep what was done.

    Returns:
        The loss of each step taken, those in `done` included.
    """
    settings = optimizer.settings
    module.train()
    losses = list(done)
    for step in range(len(losses), settings.steps):
        numbers = range(settings.accumulation * step, settings.accumulation * (step + 1))
        micro_batches = [batches.batch(first_batch + number) for number in numbers]
        losses.append(_step(objective, module, optimizer, micro_batches, rows=rows, ranks=ranks))
        tokens = settings.accumulation * settings.sequences * settings.sequence_tokens
        report = StepReport(step=step + 1, loss=losses[-1], tokens=tokens)
        goes_on = on_step is None or on_step(report)
        is_due = keeper is not None and keeper.is_due(goes_on=goes_on)
        goes_on, is_due = ranks.decided(goes_on, is_due)
        if keeper is not None and is_due:
            keeper.keep(losses)
        if not goes_on:
            break
    return losses


def _step(
    objective: Objective,
    module: torch.nn.Module,
    optimizer: InnerOptimizer,
    micro_batches: Sequence[np.ndarray],
    *,
    rows: int,
    ranks: Ranks,
) -> float:
    """Take one optimizer step; return the mean loss of its micro-batches."""
    device, dtype = optimizer.device, optimizer.dtype
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    total = torch.zeros((), device=device)
    for micro_batch in micro_batches:
        for part, share in ranks.parts(micro_batch, rows):
            with autocast:
                loss = objective.loss(module, to_device(part, device))
            optimizer.backward(loss * share / len(micro_batches))
            total += loss.detach() * share
    optimizer.step()
    return float(ranks.summed(total)) / len(micro_batches)


def to_device(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    """Move a numpy batch to `device`."""
    tensor = torch.from_numpy(batch)
    return tensor.to(device, non_blocking=True) if device.type != "cpu" else tensor
