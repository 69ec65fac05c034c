"""Which parameters are trained, chosen by patterns of their names."""

import pytest
import torch
from torch import nn

from tapestry.errors import ConfigError, RejectedError
from tapestry.params.modules import layout_of
from tapestry.params.subset import freeze_beside, freeze_others, parse_trainable


class Small(nn.Module):
    """Two layers, and a head that may be the embedding."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 2)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 5, bias=False)
        self.register_buffer("count", torch.zeros(1))
        if tied:
            self.head.weight = self.embed.weight


def trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def test_all_is_no_pattern() -> None:
    module = Small()
    freeze_others(module, parse_trainable("all"))
    assert len(trained(module)) == 6


def test_patterns_stand_between_commas_and_a_star_is_any_text() -> None:
    module = Small()
    freeze_others(module, parse_trainable(" layers.1.*, head.weigh? ,"))
    assert trained(module) == ["layers.1.weight", "layers.1.bias", "head.weight"]
    assert [spec.name for spec in layout_of(module).tensors] == [
        "head.weight", "layers.1.bias", "layers.1.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " , ", "  "])
def test_no_pattern_at_all_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected 'all', or patterns of parameters' names"):
        parse_trainable(text)


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    module = Small()
    with pytest.raises(ConfigError, match=r"like 'layer\.1\.weight': nearest are layers\.1\.weigh"):
        freeze_others(module, ["head.*", "layer.1.weight"])
    assert len(trained(module)) == 6, "nothing was changed"


def test_tied_tensors_are_not_split() -> None:
    said = r"head\.weight is one tensor with embed\.weight, which no pattern matches: name both"
    with pytest.raises(ConfigError, match=said):
        freeze_others(Small(tied=True), ["head.*"])
    module = Small(tied=True)
    freeze_others(module, ["head.*", "embed.*"])
    assert trained(module) == ["embed.weight"]


def test_what_was_frozen_before_is_not_trained_by_a_pattern() -> None:
    module = Small()
    module.layers[0].requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match=r"no parameter .* like 'layers\.0\.\*'"):
        freeze_others(module, ["layers.0.*"])


def test_a_built_model_is_frozen_as_its_checkpoint_says() -> None:
    module, built = Small(tied=True), Small(tied=True)
    freeze_others(module, ["layers.*"])
    layout = layout_of(module)
    freeze_beside(built, layout, {"embed.weight", "count"})
    assert trained(built) == trained(module)


def test_parameters_that_stay_at_home_are_trained_all_the_same() -> None:
    module = Small()
    freeze_others(module, ["layers.*"])
    layout = layout_of(module, exclude=frozenset({"layers.0.bias"}))
    beside = {"embed.weight", "count", "head.weight", "layers.0.bias"}
    freeze_beside(module, layout, beside, own=frozenset({"layers.0.bias"}))
    assert len(trained(module)) == 4


def test_a_checkpoint_without_all_of_the_model_is_refused() -> None:
    module = Small()
    freeze_others(module, ["layers.*"])
    said = r"lacks 2 tensors of the model that its config\.json describes, count among them"
    with pytest.raises(RejectedError, match=said):
        freeze_beside(Small(), layout_of(module), {"embed.weight"})
