"""Number formats, memory, and the shares of several processes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForCausalLM

from tapestry.checkpoints.statements import InnerSettings
from tapestry.errors import ConfigError
from tapestry.objectives.causal_lm import CausalLM
from tapestry.objectives.fitting import (
    blocks_of,
    checkpoint_activations,
    choose_precision,
    compile_blocks,
)
from tapestry.objectives.ranks import ALONE, Ranks
from tapestry.objectives.sizes import SIZES
from tapestry.objectives.training import InnerOptimizer, choose_device, train
from tapestry.params.tensor_file import write_tensors

CPU = torch.device("cpu")
INNER = InnerSettings(steps=4, sequences=2, sequence_tokens=16, learning_rate=1e-3, warmup_steps=2)


class Texts:
    """Random tokens, drawn from the batch's number."""

    def batch(self, step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, 300, (2, 17))


def model() -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES["tiny"].model_config(vocabulary=300)))


@pytest.mark.parametrize(("size", "rows"), [(1, 0), (2, 0), (2, 1), (3, 2), (5, 0)])
def test_the_processes_of_a_group_take_every_sequence_once_and_wait_for_nobody_in_vain(
    size: int, rows: int
) -> None:
    batch = np.arange(3)[:, None]
    taken: list[int] = []
    counts = set()
    weight = 0.0
    for rank in range(size):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        parts = list(ranks.parts(batch, rows))
        counts.add(len(parts))
        weight += sum(share for _part, share in parts)
        taken += [int(row[0]) for part, share in parts if share for row in part]
        assert all(len(part) <= rows or not rows for part, _share in parts)
        assert all(len(part) for part, _share in parts)
    assert sorted(taken) == [0, 1, 2]
    assert weight == pytest.approx(1.0)
    assert len(counts) == 1, "each makes as many calls as the others"


def test_one_process_takes_a_micro_batch_as_it_is() -> None:
    batch = np.zeros((4, 3))
    ((part, share),) = ALONE.parts(batch, 0)
    assert (part.shape, share) == ((4, 3), 1.0)


def test_a_cpu_multiplies_in_float32_unless_it_is_told_otherwise() -> None:
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_float16_trains_with_scaled_losses_and_keeps_the_scale(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "fp16"):
        module = model()
        optimizer = InnerOptimizer(module, INNER, precision=precision)  # type: ignore[arg-type]
        losses[precision] = train(CausalLM(), module, optimizer, Texts(), first_batch=0)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=5e-3)
    assert losses["fp16"] != losses["fp32"]
    assert next(module.parameters()).dtype == torch.float32

    optimizer.save(tmp_path / "state.safetensors")
    scale = optimizer.metadata()["loss_scale"]
    again = InnerOptimizer(module, INNER, precision="fp16")
    assert again.metadata()["loss_scale"] != scale, "four steps without an overflow are counted"
    again.load(tmp_path / "state.safetensors")
    assert again.metadata() == optimizer.metadata()


def test_bfloat16_trains_nearly_as_float32_and_keeps_parameters_in_float32() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        module = model()
        optimizer = InnerOptimizer(module, INNER, precision=precision)  # type: ignore[arg-type]
        losses[precision] = train(CausalLM(), module, optimizer, Texts(), first_batch=0)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert "loss_scale" not in optimizer.metadata(), "bfloat16 reaches as far as float32"
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for C++ on this machine")
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_compiled_layers_compute_the_same() -> None:
    results = []
    for is_compiled in (False, True):
        module, compiled_before = model(), counters["stats"]["unique_graphs"]
        if is_compiled:
            compile_blocks(module)
        losses = train(CausalLM(), module, InnerOptimizer(module, INNER), Texts(), first_batch=0)
        results.append(losses)
        assert (counters["stats"]["unique_graphs"] > compiled_before) is is_compiled
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_compiling_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"there is no no-such-compiler: .* compile = false"):
        compile_blocks(model())


def test_gradient_checkpointing_changes_nothing() -> None:
    results = []
    for is_checkpointed in (False, True):
        module = model()
        if is_checkpointed:
            checkpoint_activations(module)
            assert any(getattr(m, "gradient_checkpointing", False) for m in module.modules())
        results.append(
            train(CausalLM(), module, InnerOptimizer(module, INNER), Texts(), first_batch=0)
        )
    assert results[0] == results[1]


def test_a_model_without_gradient_checkpointing_says_which_setting_to_change() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing = false"):
        checkpoint_activations(torch.nn.Linear(2, 2))


def test_the_layers_of_a_model_are_found() -> None:
    assert len(blocks_of(model())) == SIZES["tiny"].layers
    assert blocks_of(torch.nn.Linear(2, 2)) == []


def test_several_processes_on_a_cpu_share_it() -> None:
    assert choose_device("cpu", rank=1, processes=2) == CPU


def test_any_reader_loads_a_file_of_tensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        "a": torch.tensor(3.0),
        "c": torch.arange(5, dtype=torch.uint8),
    }
    write_tensors(tmp_path / "file", tensors, {"steps_done": "3"})
    found = load_file(tmp_path / "file")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
