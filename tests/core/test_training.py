"""The inner steps, against the same loop written out with plain PyTorch, and by hand.

Most of it runs on one vector w with the loss c*w: its gradient is c, so every step of AdamW can be
computed on paper. With a gradient that does not change, AdamW moves by the learning rate.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import mse_loss

from tapestry.checkpoints.statements import InnerSettings
from tapestry.errors import ConfigError
from tapestry.objectives.causal_lm import CausalLM
from tapestry.objectives.reports import StepReport
from tapestry.objectives.training import (
    SMALL_MODEL_ELEMENTS,
    InnerOptimizer,
    choose_device,
    choose_threads,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS, OUTPUTS = 6, 3


def inner(**changes: float) -> InnerSettings:
    """Return inner settings of 5 steps without warm-up, decay, or clipping."""
    settings = {
        "steps": 5,
        "sequences": 4,
        "sequence_tokens": 8,
        "learning_rate": 0.1,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "gradient_clip": 0.0,
        **changes,
    }
    return InnerSettings(**settings)


class Scalars(nn.Module):
    """One vector."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))


class Slope(CausalLM):
    """An objective whose gradient is the batch: the loss is c * w."""

    def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        (w,) = module.parameters()
        return (batch.float() * w).sum()


class Regression(CausalLM):
    """Least squares; a row of a batch is inputs and targets side by side."""

    def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return mse_loss(module(batch[:, :INPUTS].float()), batch[:, INPUTS:].float())


class Rows:
    """Random whole numbers, drawn from the batch's number."""

    def __init__(self, sequences: int = 4, *, seed: int = 1) -> None:
        self.sequences = sequences
        self.asked: list[int] = []
        self._seed = seed

    def batch(self, step: int) -> np.ndarray:
        self.asked.append(step)
        first = step * self.sequences
        return np.stack([self._row(n) for n in range(first, first + self.sequences)])

    def _row(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, number])
        return rng.integers(-5, 6, INPUTS + OUTPUTS)


class Constant:
    """The same batch again and again."""

    def __init__(self, *values: int) -> None:
        self._values = np.array(values)

    def batch(self, step: int) -> np.ndarray:  # noqa: ARG002 - as a federation's batches
        return self._values


class Listed:
    """One batch a step."""

    def __init__(self, *batches: tuple[int, ...]) -> None:
        self._batches = batches

    def batch(self, step: int) -> np.ndarray:
        return np.array(self._batches[step])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, OUTPUTS))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def slopes(module: Scalars, settings: InnerSettings, *batches: tuple[int, ...]) -> list[float]:
    """Train on the given gradients; return the value of w after each step."""
    values: list[float] = []

    def look(_report: StepReport) -> bool:
        values.append(round(module.w.detach()[0].item(), 5))
        return True

    optimizer = InnerOptimizer(module, settings)
    train(Slope(), module, optimizer, Listed(*batches), first_batch=0, on_step=look)
    return values


# Against plain PyTorch


def plain_loop(module: nn.Module, rows: Rows, settings: InnerSettings) -> list[float]:
    """Train `module` without anything of Tapestry; return the losses."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(settings.beta1, settings.beta2),
        foreach=False,
    )
    losses = []
    for step in range(settings.steps):
        batch = torch.from_numpy(rows.batch(step)).float()
        loss = mse_loss(module(batch[:, :INPUTS]), batch[:, INPUTS:])
        adamw.zero_grad()
        loss.backward()
        if settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_clip)
        for group in adamw.param_groups:
            group["lr"] = settings.learning_rate * min(1, (step + 1) / settings.warmup_steps)
        adamw.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_loop_is_that_of_plain_pytorch(clip: float) -> None:
    settings = inner(
        steps=30, learning_rate=0.02, warmup_steps=10, weight_decay=0.3, gradient_clip=clip
    )
    ours, plain = network(), network()
    losses = train(Regression(), ours, InnerOptimizer(ours, settings), Rows(), first_batch=0)
    expected = plain_loop(plain, Rows(), settings)
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-4, atol=1e-6)


def test_two_micro_batches_are_one_batch_twice_as_large() -> None:
    whole, halves = network(), network()
    settings = inner(steps=8, gradient_clip=1.0)
    once = train(Regression(), whole, InnerOptimizer(whole, settings), Rows(4), first_batch=0)
    split = inner(steps=8, gradient_clip=1.0, accumulation=2, sequences=2)
    rows = Rows(2)
    twice = train(Regression(), halves, InnerOptimizer(halves, split), rows, first_batch=0)
    assert rows.asked == list(range(16))
    assert twice == pytest.approx(once, rel=1e-5)
    torch.testing.assert_close(weights(halves), weights(whole), rtol=1e-4, atol=1e-5)


def test_batches_are_counted_on_from_the_first() -> None:
    rows, module = Rows(), network()
    train(Regression(), module, InnerOptimizer(module, inner(steps=3)), rows, first_batch=7)
    assert rows.asked == [7, 8, 9]


# By hand


def test_a_constant_gradient_moves_by_the_learning_rate() -> None:
    assert slopes(Scalars(1.0), inner(steps=3), (4,), (4,), (4,)) == [0.9, 0.8, 0.7]
    assert slopes(Scalars(1.0), inner(steps=3), (-4,), (-4,), (-4,)) == [1.1, 1.2, 1.3]


def test_the_learning_rate_warms_up_linearly_and_stays() -> None:
    settings = inner(steps=6, learning_rate=0.4, warmup_steps=4)
    walked = slopes(Scalars(0.0), settings, *[(-1,)] * 6)
    assert walked == [0.1, 0.3, 0.6, 1.0, 1.4, 1.8]  # + .1, .2, .3, .4, .4, .4


def test_warm_up_is_counted_over_rounds(tmp_path: Path) -> None:
    settings = inner(steps=2, learning_rate=0.4, warmup_steps=4)
    module = Scalars(0.0)
    for _round in range(3):
        optimizer = InnerOptimizer(module, settings)
        if (tmp_path / "state").exists():
            optimizer.load(tmp_path / "state")
        train(Slope(), module, optimizer, Constant(-1), first_batch=optimizer.steps_done)
        optimizer.save(tmp_path / "state")
    assert optimizer.steps_done == 6
    assert module.w.item() == pytest.approx(1.8)  # as in one round of six steps


def test_the_second_moment_remembers_a_large_gradient() -> None:
    settings = inner(steps=2, learning_rate=0.1, beta1=0.5, beta2=0.5)
    first, second = slopes(Scalars(0.0), settings, (-1,), (-3,))
    assert first == 0.1
    mean = (0.25 * 1 + 0.5 * 3) / 0.75  # bias-corrected averages of 1, 3 and of 1, 9
    square = (0.25 * 1 + 0.5 * 9) / 0.75
    assert second == pytest.approx(0.1 + 0.1 * mean / square**0.5, abs=1e-5)


def test_gradients_beyond_the_bound_are_scaled_to_it() -> None:
    gradients = ((30, 40), (3, 4))  # norms 50 and 5: both become (.6, .8)
    clipped = slopes(Scalars(0.0, 0.0), inner(steps=2, gradient_clip=1.0), *gradients)
    assert clipped == [-0.1, -0.2]


def test_a_bound_of_zero_turns_clipping_off() -> None:
    settings = inner(steps=2, beta1=0.0, beta2=0.5)
    _first, second = slopes(Scalars(0.0), settings, (50,), (5,))
    square = (0.25 * 50**2 + 0.5 * 5**2) / 0.75
    assert second == pytest.approx(-0.1 - 0.1 * 5 / square**0.5, abs=1e-5)


def test_gradients_within_the_bound_stay_as_they_are() -> None:
    free = slopes(Scalars(0.0), inner(steps=2, beta1=0.0), (2,), (1,))
    bound = slopes(Scalars(0.0), inner(steps=2, beta1=0.0, gradient_clip=2.5), (2,), (1,))
    assert bound == free


def test_weight_decay_shrinks_matrices_only() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.bias.fill_(2.0)
    optimizer = InnerOptimizer(module, inner(learning_rate=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 2), 1.9))  # 2 - .1 * .5 * 2
    torch.testing.assert_close(module.bias.detach(), torch.full((2,), 2.0))


def test_a_step_forgets_the_gradients() -> None:
    module = Scalars(1.0)
    optimizer = InnerOptimizer(module, inner())
    module.w.grad = torch.ones(1)
    optimizer.step()
    assert module.w.grad is None
    assert optimizer.steps_done == 1


def test_frozen_parameters_stay_as_they_are() -> None:
    module = network()
    module[0].requires_grad_(requires_grad=False)
    frozen, last = module[0].weight.clone(), module[3].weight.clone()
    settings = inner(steps=2, weight_decay=0.5)
    train(Regression(), module, InnerOptimizer(module, settings), Rows(), first_batch=0)
    assert torch.equal(module[0].weight, frozen)
    assert not torch.equal(module[3].weight, last)


# What whoever watches sees


def test_each_step_is_reported_with_its_loss_and_tokens() -> None:
    reports: list[StepReport] = []

    def look(report: StepReport) -> bool:
        reports.append(report)
        return True

    module = network()
    settings = inner(steps=3, accumulation=2, sequences=4, sequence_tokens=8)
    losses = train(
        Regression(), module, InnerOptimizer(module, settings), Rows(), first_batch=0, on_step=look
    )
    assert [report.step for report in reports] == [1, 2, 3]
    assert [report.loss for report in reports] == losses
    assert [report.tokens for report in reports] == [2 * 4 * 8] * 3


def test_the_loss_of_a_step_is_the_mean_of_its_micro_batches() -> None:
    module = Scalars(1.0)
    optimizer = InnerOptimizer(module, inner(steps=1, accumulation=2))
    assert train(Slope(), module, optimizer, Listed((2,), (5,)), first_batch=0) == [3.5]


def test_training_ends_early_when_it_is_told_to() -> None:
    module = Scalars(1.0)
    optimizer = InnerOptimizer(module, inner(steps=100))
    losses = train(
        Slope(), module, optimizer, Constant(1), first_batch=0, on_step=lambda r: r.step < 3
    )
    assert len(losses) == 3
    assert optimizer.steps_done == 3
    assert module.w.item() == pytest.approx(0.7)  # the third step was taken


# The state between rounds


def test_a_run_goes_on_to_the_bit_after_a_restart(tmp_path: Path) -> None:
    settings = inner(
        steps=8, learning_rate=0.02, warmup_steps=6, weight_decay=0.1, gradient_clip=1.0
    )
    straight = network()
    losses = train(
        Regression(), straight, InnerOptimizer(straight, settings), Rows(), first_batch=0
    )
    half = settings.model_copy(update={"steps": 4})
    module = network()
    optimizer = InnerOptimizer(module, half)
    first = train(Regression(), module, optimizer, Rows(), first_batch=0)
    optimizer.save(tmp_path / "state.safetensors")

    restarted = network(seed=9)
    restarted.load_state_dict(module.state_dict())
    resumed = InnerOptimizer(restarted, half)
    resumed.load(tmp_path / "state.safetensors")
    assert resumed.steps_done == 4
    second = train(Regression(), restarted, resumed, Rows(), first_batch=4)
    assert first + second == losses
    assert torch.equal(weights(restarted), weights(straight))


def test_saving_leaves_one_whole_file(tmp_path: Path) -> None:
    module = Scalars(1.0)
    optimizer = InnerOptimizer(module, inner())
    path = tmp_path / "round-000001.safetensors"
    for _again in range(2):
        train(Slope(), module, optimizer, Constant(1), first_batch=0)
        optimizer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    fresh = InnerOptimizer(module, inner())
    fresh.load(path)
    assert fresh.steps_done == 10


def test_a_state_before_the_first_step_can_be_saved(tmp_path: Path) -> None:
    optimizer = InnerOptimizer(network(), inner())
    optimizer.save(tmp_path / "state.safetensors")
    again = InnerOptimizer(network(), inner())
    again.load(tmp_path / "state.safetensors")
    assert again.steps_done == 0


def _garbage(path: Path) -> None:
    path.write_bytes(b"not safetensors at all")


def _empty(path: Path) -> None:
    path.touch()


def _cut_short(path: Path) -> None:
    _of_this_model(path)
    path.write_bytes(path.read_bytes()[:-4])


def _missing(path: Path) -> None:
    assert not path.exists()


def _without_a_count(path: Path) -> None:
    save_file({"w|exp_avg": torch.zeros(1)}, path)


def _without_a_field(path: Path) -> None:
    save_file({"w": torch.zeros(1)}, path, metadata={"steps_done": "3"})


def _of_other_names(path: Path) -> None:
    trained_state(nn.Linear(1, 1, bias=False), path)


def _of_another_shape(path: Path) -> None:
    trained_state(Scalars(1.0, 2.0), path)


def _of_this_model(path: Path) -> None:
    trained_state(Scalars(1.0), path)


def trained_state(module: nn.Module, path: Path) -> None:
    optimizer = InnerOptimizer(module, inner())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.save(path)


@pytest.mark.parametrize(
    "make",
    [
        _garbage,
        _empty,
        _cut_short,
        _missing,
        _without_a_count,
        _without_a_field,
        _of_other_names,
        _of_another_shape,
    ],
)
def test_a_state_that_cannot_be_taken_up_says_what_to_do(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "state.safetensors"
    make(path)
    with pytest.raises(ConfigError) as caught:
        InnerOptimizer(Scalars(1.0), inner()).load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: not the optimizer state of this model (")
    assert said.endswith("remove it to start with fresh moments")


# Devices and threads


def test_the_cpu_can_be_chosen() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps", "xpu")


@pytest.mark.parametrize("name", ["loom", "", "cpu:x", "cuda:99", "mps:99"])
def test_a_device_that_is_not_there_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used") as caught:
        choose_device(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_small_model_gets_one_thread_unless_the_operator_wants_more() -> None:
    assert choose_threads(SMALL_MODEL_ELEMENTS - 1) == torch.get_num_threads() == 1
    assert choose_threads(SMALL_MODEL_ELEMENTS - 1, wanted=2) == torch.get_num_threads() == 2
    assert choose_threads(SMALL_MODEL_ELEMENTS) == torch.get_num_threads() >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_large_model_takes_no_more_threads_than_it_was_given_cores() -> None:
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert choose_threads(SMALL_MODEL_ELEMENTS) == 1
    finally:
        os.sched_setaffinity(0, given)
    assert choose_threads(SMALL_MODEL_ELEMENTS) == len(given)
