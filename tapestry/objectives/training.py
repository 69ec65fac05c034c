"""The inner steps: plain PyTorch training of any objective, resumable to the step.

Everything that trains uses this one loop: a node in a round, a node on its own, a community that
carries the consensus on in its language.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tapestry.checkpoints.statements import InnerSettings
from tapestry.errors import ConfigError
from tapestry.objectives.objective import Batches, Objective

SMALL_MODEL_ELEMENTS = 10_000_000
"""Below this many parameters a second thread costs more than it brings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step, as told to whoever watches."""

    step: int
    """Steps done in this call, from 1."""
    loss: float
    """Mean over the step's micro-batches, nats per token."""
    tokens: int
    """Tokens of the step."""


class InnerOptimizer:
    """AdamW (arXiv 1711.05101) over a module, with its state kept between rounds.

    Weight decay applies to matrices only. The learning rate warms up linearly over
    `warmup_steps`, counted over all rounds, and is constant afterwards: the horizon of a
    federation is not known.
    """

    def __init__(self, module: torch.nn.Module, settings: InnerSettings) -> None:
        """Start with empty moments at step 0."""
        self.settings = settings
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

    def step(self) -> None:
        """Clip the gradients, update the parameters, forget the gradients."""
        warmup = self.settings.warmup_steps
        scale = min(1.0, (self.steps_done + 1) / warmup) if warmup else 1.0
        for group in self._adamw.param_groups:
            group["lr"] = self.settings.learning_rate * scale
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self._named.values(), self.settings.gradient_clip)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self.steps_done += 1

    def save(self, path: Path) -> None:
        """Write the moments and the step count to `path` (safetensors), atomically."""
        tensors = {}
        for name, parameter in self._named.items():
            for key, value in self._adamw.state.get(parameter, {}).items():
                tensors[f"{name}|{key}"] = value.detach().to("cpu").contiguous()
        temporary = path.with_suffix(".part")
        save_file(tensors, temporary, metadata={"steps_done": str(self.steps_done)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Take up the state that `save` wrote.

        Raises:
            ConfigError: The file is damaged or belongs to another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                self.steps_done = int(file.metadata()["steps_done"])
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    name, field = key.rsplit("|", 1)
                    parameter = self._named[name]
                    value = file.get_tensor(key)
                    if field != "step" and value.shape != parameter.shape:
                        raise ValueError(f"{key} has shape {tuple(value.shape)}")  # noqa: TRY301
                    on_device = value if field == "step" else value.to(parameter.device)
                    self._adamw.state[parameter][field] = on_device
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: not the optimizer state of this model ({error}); remove it to start "
                "with fresh moments"
            ) from error


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` takes an accelerator if there is one.

    Raises:
        ConfigError: The device is not there.
    """
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


def choose_threads(elements: int, *, wanted: int = 0) -> int:
    """Set and return the number of CPU threads for a model of `elements` parameters.

    Args:
        elements: Length of the parameter vector.
        wanted: 0 chooses: one for small models, which run slower with more; else all cores.
    """
    threads = wanted or (1 if elements < SMALL_MODEL_ELEMENTS else os.cpu_count() or 1)
    torch.set_num_threads(threads)
    return threads


def train(
    objective: Objective,
    module: torch.nn.Module,
    optimizer: InnerOptimizer,
    batches: Batches,
    *,
    first_batch: int,
    on_step: Callable[[StepReport], bool] | None = None,
    rows: int = 0,
) -> list[float]:
    """Take `optimizer.settings.steps` inner steps.

    Args:
        objective: Computes the loss.
        module: Changed in place; on its device already.
        optimizer: Of that module.
        batches: Where micro-batches come from.
        first_batch: Number of the first micro-batch; the caller counts them over all rounds.
        on_step: Called after each step; returning False ends the training early.
        rows: Sequences that go through the model at once; 0: a whole micro-batch. Fewer take less
            memory and give the same step, up to the order in which floats are added.

    Returns:
        The loss of each step taken.
    """
    settings = optimizer.settings
    device = next(module.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_has_bfloat16(device))
    module.train()
    losses: list[float] = []
    for step in range(settings.steps):
        total = torch.zeros((), device=device)
        for part in range(settings.accumulation):
            numbers = batches.batch(first_batch + step * settings.accumulation + part)
            for some in _cut(numbers, rows):
                with autocast:
                    loss = objective.loss(module, to_device(some, device))
                share = len(some) / len(numbers)
                (loss * share / settings.accumulation).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() * share
        optimizer.step()
        losses.append(float(total) / settings.accumulation)
        tokens = settings.accumulation * settings.sequences * settings.sequence_tokens
        report = StepReport(step=step + 1, loss=losses[-1], tokens=tokens)
        if on_step is not None and not on_step(report):
            break
    return losses


def _cut(batch: np.ndarray, rows: int) -> list[np.ndarray]:
    """Return a batch in parts of at most `rows` sequences; 0: whole."""
    step = rows or len(batch)
    return [batch[start : start + step] for start in range(0, len(batch), step)]


def to_device(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    """Move a numpy batch to `device`."""
    tensor = torch.from_numpy(batch)
    return tensor.to(device, non_blocking=True) if device.type != "cpu" else tensor


def _has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies in bfloat16 fast; CPUs train in float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
