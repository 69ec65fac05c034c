"""Which parameters of a model are trained: all, or those whose names match patterns.

The others are frozen. They stand beside the vector, get no gradients and no moments, and are the
same in every checkpoint.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from tapestry.errors import ConfigError, RejectedError
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import outside_the_vector

ALL = "all"
_NAMED = 3


def parse_trainable(text: str) -> tuple[str, ...]:
    """Return the patterns in `text`, between commas; none for `all`.

    Raises:
        ConfigError: There is none.
    """
    if text.strip() == ALL:
        return ()
    patterns = tuple(part.strip() for part in text.split(",") if part.strip())
    if not patterns:
        raise ConfigError(
            f"--trainable {text!r}: expected {ALL!r}, or patterns of parameters' names between "
            "commas, such as 'model.layers.11.*,model.norm.*'"
        )
    return patterns


def freeze_others(module: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter of `module` whose name no pattern matches; no pattern: none.

    Patterns are those of `fnmatch`: `*` is any text, dots included, `?` one character.

    Raises:
        ConfigError: A pattern matches nothing that is trained, or one of two tied names.
    """
    if not patterns:
        return
    names: dict[int, list[str]] = {}
    parameters = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
    every = [name for tied in names.values() for name in tied]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ConfigError(_matches_nothing(pattern, every))
    for key, tied in names.items():
        matched = [name for name in tied if any(fnmatchcase(name, one) for one in patterns)]
        if matched and len(matched) < len(tied):
            (other, *_) = [name for name in tied if name not in matched]
            raise ConfigError(
                f"trainable: {matched[0]} is one tensor with {other}, which no pattern matches: "
                "name both or neither"
            )
        parameters[key].requires_grad = bool(matched)


def _matches_nothing(pattern: str, names: Sequence[str]) -> str:
    nearest = get_close_matches(pattern, names, n=_NAMED, cutoff=0.0)
    said = f"nearest are {', '.join(nearest)}" if nearest else "it has none"
    return (
        f"trainable: no parameter of the model has a name like {pattern!r}: {said}. Patterns are "
        "those of file names: 'model.layers.11.*'"
    )


def freeze_beside(
    module: torch.nn.Module,
    layout: ParameterLayout,
    beside: Collection[str],
    *,
    own: frozenset[str] = frozenset(),
) -> None:
    """Freeze the parameters of a built model that are not in the vector.

    Args:
        module: Built from the files of a checkpoint.
        layout: Of the checkpoint's vector.
        beside: Names of the tensors that the checkpoint has beside it.
        own: Parameters that are trained and stay at home (the objective's `non_averageable`).

    Raises:
        RejectedError: A tensor of the model is neither in the vector nor beside it.
    """
    missing = outside_the_vector(module, layout).keys() - set(beside)
    if missing:
        raise RejectedError(
            f"the checkpoint lacks {len(missing)} tensors of the model that its config.json "
            f"describes, {min(missing)} among them"
        )
    trained = {spec.name for spec in layout.tensors} | own
    for name, parameter in module.named_parameters():
        if name not in trained:
            parameter.requires_grad = False
