"""Between torch modules and their parameter vector."""

import math

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tapestry.errors import RejectedError
from tapestry.params import layout as layout_module
from tapestry.params.deltas import norm, pseudo_gradient, squared_norm
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import (
    fragment_of,
    from_model,
    layout_of,
    load_extras,
    outside_the_vector,
    slices,
    to_model,
)

SHAPE = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
# embedding 10*8; q 8*8, k and v 4*8 each, o 8*8; gate, up, down 8*16 each; three norms of 8
LLAMA_ELEMENTS = 80 + (64 + 32 + 32 + 64) + 3 * 128 + 3 * 8
QK_NORM_ELEMENTS = 2 * 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 5, bias=False)
        self.input = nn.Embedding(5, 3)
        self.output.weight = self.input.weight


class WithRest(nn.Module):
    """A trainable layer, a frozen one, buffers that are stored, and one that is not."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 1).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


@dataclass(frozen=True)
class Raw:
    data: bytes


def llama(*, tied: bool) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    return model


def qwen() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    return model


def raw(tensor: torch.Tensor) -> Raw:
    return Raw(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def test_the_vector_is_row_major_in_the_order_of_names() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        module.bias.copy_(torch.tensor([5.0, 6.0]))
    vector = from_model(module, layout_of(module))
    np.testing.assert_array_equal(vector, np.array([5, 6, 1, 2, 3, 4], np.float32))


def test_a_transposed_parameter_is_read_row_major_too() -> None:
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T))
    layout = layout_of(module)
    np.testing.assert_array_equal(from_model(module, layout), np.float32([1, 3, 2, 4]))
    np.testing.assert_array_equal(fragment_of(module, layout, 0), np.float32([1, 3, 2, 4]))


def test_tied_weights_are_counted_once() -> None:
    layout = layout_of(Tied())
    assert layout.elements == 15
    assert len(layout.tensors) == 1
    assert outside_the_vector(Tied(), layout) == {}


def test_tied_embeddings_of_transformers_models_are_counted_once() -> None:
    assert layout_of(llama(tied=True)).elements == LLAMA_ELEMENTS
    assert layout_of(llama(tied=False)).elements == LLAMA_ELEMENTS + 80
    assert layout_of(qwen()).elements == LLAMA_ELEMENTS + QK_NORM_ELEMENTS


def test_a_tied_weight_goes_under_the_name_that_its_file_keeps() -> None:
    names = [spec.name for spec in layout_of(qwen()).tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_setting_a_tied_weight_sets_it_everywhere() -> None:
    module = qwen()
    layout = layout_of(module)
    to_model(np.full(layout.elements, 0.5, np.float32), module, layout)
    state = module.state_dict()
    assert state["lm_head.weight"].eq(0.5).all()
    assert state["model.embed_tokens.weight"].eq(0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_written_into_a_model_comes_out_again(dtype: torch.dtype) -> None:
    module = qwen().to(dtype)
    layout = layout_of(module)
    rng = np.random.default_rng(1)
    vector = rng.integers(-8, 8, layout.elements).astype(np.float32)  # exact in both types
    to_model(vector, module, layout)
    assert next(module.parameters()).dtype == dtype
    np.testing.assert_array_equal(from_model(module, layout), vector)


def test_the_vector_is_a_copy_of_the_model() -> None:
    module = nn.Linear(2, 2)
    layout = layout_of(module)
    vector = from_model(module, layout)
    before = vector.copy()
    with torch.no_grad():
        module.weight.add_(1.0)
    np.testing.assert_array_equal(vector, before)


def test_two_models_with_one_vector_compute_the_same() -> None:
    first, second = qwen(), qwen()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(3.0)
    layout = layout_of(first)
    to_model(from_model(first, layout), second, layout)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(first(tokens).logits, second(tokens).logits)


def test_fragments_are_the_pieces_of_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "FRAGMENT_ELEMENTS", 100)
    module = qwen()
    layout = layout_of(module)
    pieces = [fragment_of(module, layout, index) for index in range(layout.fragments)]
    assert [len(piece) for piece in pieces[:-1]] == [100] * (layout.fragments - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), from_model(module, layout))


def test_a_range_of_the_vector_names_the_tensors_it_cuts() -> None:
    layout = ParameterLayout.from_shapes([("a", (4,)), ("b", (2, 3)), ("c", (5,))])
    cut = [(spec.name, first, last) for spec, first, last in slices(layout, 3, 12)]
    assert cut == [("a", 3, 4), ("b", 0, 6), ("c", 0, 2)]


def test_frozen_parameters_and_buffers_are_outside_the_vector() -> None:
    module = WithRest()
    layout = layout_of(module)
    names = [spec.name for spec in layout.tensors]
    assert names == ["norm.bias", "norm.weight", "trained.bias", "trained.weight"]
    assert sorted(outside_the_vector(module, layout)) == [
        "frozen.bias",
        "frozen.weight",
        "mask",
        "norm.num_batches_tracked",
        "norm.running_mean",
        "norm.running_var",
    ]


def test_what_is_excluded_moves_beside_the_vector() -> None:
    module = nn.Linear(2, 3)
    layout = layout_of(module, exclude=frozenset({"bias"}))
    assert layout.elements == 6
    assert list(outside_the_vector(module, layout)) == ["bias"]


def test_vector_and_rest_together_are_the_whole_model() -> None:
    source, target = WithRest(), WithRest()
    source.norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    source.mask.fill_(True)  # noqa: FBT003 - the value of a tensor
    layout = layout_of(source)
    to_model(from_model(source, layout), target, layout)
    load_extras(target, {n: raw(t) for n, t in outside_the_vector(source, layout).items()})
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_a_buffer_without_elements_can_be_loaded() -> None:
    module = nn.Module()
    module.register_buffer("empty", torch.zeros(0))
    load_extras(module, {"empty": Raw(b"")})


@pytest.mark.parametrize("extra", [{"nowhere": Raw(b"\0")}, {"mask": Raw(b"\0\0")}])
def test_a_tensor_that_the_model_has_not_is_refused(extra: dict[str, Raw]) -> None:
    with pytest.raises(RejectedError, match="that the model has not"):
        load_extras(WithRest(), extra)


def test_a_vector_of_another_length_is_refused() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RejectedError, match="same model configuration"):
        to_model(np.zeros(7, np.float32), module, layout_of(module))


@pytest.mark.parametrize(
    ("other", "found"), [(nn.Linear(4, 1), r"shape \(1,\)"), (nn.BatchNorm1d(2), r"shape \(2,\)")]
)
def test_a_vector_of_another_model_is_refused(other: nn.Module, found: str) -> None:
    layout = layout_of(nn.Linear(2, 3))
    vector = np.zeros(layout.elements, np.float32)
    with pytest.raises(RejectedError, match=f"the model has {found}"):
        to_model(vector, other, layout)
    with pytest.raises(RejectedError, match=f"the model has {found}"):
        from_model(other, layout)


def test_a_refused_vector_leaves_the_model_as_it_was() -> None:
    module = nn.Linear(2, 2)  # the bias would fit, the weight does not
    before = from_model(module, layout_of(module))
    layout = ParameterLayout.from_shapes([("bias", (2,)), ("weight", (4,))])
    with pytest.raises(RejectedError):
        to_model(np.full(6, 9.0, np.float32), module, layout)
    np.testing.assert_array_equal(from_model(module, layout_of(module)), before)


def test_the_pseudo_gradient_is_base_minus_local() -> None:
    base, local = np.float32([1.0, 2.0, 3.0]), np.float32([0.5, 2.0, 5.0])
    np.testing.assert_array_equal(pseudo_gradient(base, local), np.float32([0.5, 0.0, -2.0]))


def test_after_a_step_downhill_the_pseudo_gradient_points_like_the_gradient() -> None:
    module = nn.Linear(3, 1)
    layout = layout_of(module)
    base = from_model(module, layout)
    module(torch.tensor([[1.0, -2.0, 3.0]])).square().sum().backward()
    gradient = np.concatenate(
        [
            p.grad.reshape(-1).numpy()
            for _, p in sorted(module.named_parameters())
            if p.grad is not None
        ]
    )
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    delta = pseudo_gradient(base, from_model(module, layout))
    np.testing.assert_allclose(delta, 0.01 * gradient, rtol=1e-3, atol=1e-7)


def test_pseudo_gradients_between_different_models_are_refused() -> None:
    with pytest.raises(RejectedError, match="local model has 2 parameters, base checkpoint has 3"):
        pseudo_gradient(np.zeros(3, np.float32), np.zeros(2, np.float32))


def test_the_norm_of_a_vector_comes_from_its_fragments() -> None:
    assert squared_norm(np.float32([3.0, 4.0])) == 25.0
    assert norm([25.0, 144.0]) == 13.0


def test_the_norm_does_not_overflow_where_float32_would() -> None:
    assert squared_norm(np.float32([3e30, 4e30])) == pytest.approx(25e60, rel=1e-6)


@pytest.mark.parametrize("count", [1, 1023, 1024, 5000, 2**20])
@pytest.mark.parametrize("scale", [1e-40, 1e-22, 1e-16, 1e-10, 1e-3, 1.0, 1e17, 3e37])
def test_the_norm_is_good_to_a_millionth_at_every_scale(scale: float, count: int) -> None:
    drawn = np.random.default_rng(count).standard_normal(count) * scale
    values = drawn.astype(np.float32)
    exact = math.fsum((values.astype(np.float64) ** 2).tolist())
    assert squared_norm(values) == pytest.approx(exact, rel=1e-6)


def test_a_few_large_values_among_tiny_ones_are_not_lost() -> None:
    values = np.full(2**20, 1e-23, np.float32)
    values[7] = 1e-15
    assert squared_norm(values) == pytest.approx(1e-30, rel=1e-6)
    assert math.isnan(squared_norm(np.float32([np.nan, 1.0])))
    assert squared_norm(np.float32([np.inf, -np.inf])) == math.inf
