"""Text rebuilt from the gradient of one step: the span check of DAGER (arXiv 2405.15586).

The gradient of a matrix that reads x is a sum of outer products with every x that it read. While a
batch has fewer tokens than the model has width, these x span a part of the space only, and whoever
has the model can compute the x of any text and see whether it lies in there: of single tokens at
the first block, of a prefix and one more token at the second, because a block of a causal model
sees nothing of what comes after. The matrices taken are those that read a block's input first
(queries, keys, values), of whatever transformer it is.

Shapes: D width, O rows of the stacked matrices, R directions of the span, V vocabulary, N texts,
T tokens of each.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.pytorch_utils import Conv1D

from tapestry.objectives.fitting import blocks_of
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout

Ids = npt.NDArray[np.int64]

_TOKENS_AT_ONCE = 2**13
_OVERSAMPLED, _PASSES = 8, 4
_BEAM = 16
"""Beginnings that are kept at each position: true ones stand apart from all others."""


class _ReadError(Exception):
    """Ends a forward pass where enough was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """The matrices that read the input of one block first."""

    first: torch.nn.Module
    places: tuple[tuple[slice, tuple[int, ...], bool], ...]
    """Where each lies in the vector, its shape, and whether it is kept as [D, O]."""

    def rows(self, vector: Float32Array) -> torch.Tensor:
        """Return what `vector` says of these matrices: [O, D] float64."""
        parts = []
        for bounds, shape, is_turned in self.places:
            part = torch.from_numpy(np.array(vector[bounds], np.float64)).view(shape)
            parts.append(part.T if is_turned else part)
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What the attack makes of a vector."""

    tokens: Ids
    """All of the vocabulary, the likeliest first: [V]."""
    sequences: Ids
    """The likeliest first: [N, T]."""


def readers_of(module: torch.nn.Module, layout: ParameterLayout) -> list[Reader]:
    """Return the readers of the first two blocks; fewer if the vector has not their matrices."""
    places = {spec.name: slice(spec.offset, spec.offset + spec.size) for spec in layout.tensors}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: list[Reader] = []
    for block in blocks_of(module)[:2]:
        matrices = _first_of(module, block)
        sent = [m for m in matrices if names.get(id(m.weight)) in places]
        if not sent:
            break
        found.append(
            Reader(
                first=matrices[0],
                places=tuple(
                    (places[names[id(m.weight)]], tuple(m.weight.shape), isinstance(m, Conv1D))
                    for m in sent
                ),
            )
        )
    return found


def _first_of(module: torch.nn.Module, block: torch.nn.Module) -> list[Any]:
    """Return the matrices of a block that read the same tensor as the one that reads first."""
    seen: list[tuple[Any, torch.Tensor]] = []

    def see(part: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args:
            seen.append((part, args[0]))

    with ExitStack() as hooks:
        for part in block.modules():
            if isinstance(part, torch.nn.Linear | Conv1D):
                hook = part.register_forward_pre_hook(see)
                hooks.callback(hook.remove)
        _forward(module, torch.zeros((1, 1), dtype=torch.long))
    return [part for part, read in seen if read is seen[0][1]]


def _forward(module: Any, ids: torch.Tensor) -> None:  # noqa: ANN401
    device = next(module.parameters()).device
    with torch.inference_mode():
        module(input_ids=ids.to(device), use_cache=False)


def read_by(module: torch.nn.Module, reader: Reader, ids: Ids) -> torch.Tensor:
    """Return what `reader` reads at the last token of each text [N, T]: [N, D] float64."""
    taken: list[torch.Tensor] = []

    def take(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        taken.append(args[0][:, -1].cpu().double())
        raise _ReadError

    hook = reader.first.register_forward_pre_hook(take)
    at_once = max(1, _TOKENS_AT_ONCE // ids.shape[1])
    try:
        for start in range(0, len(ids), at_once):
            try:
                _forward(module, torch.from_numpy(ids[start : start + at_once]))
            except _ReadError:
                continue
    finally:
        hook.remove()
    return torch.cat(taken)


def span_of(rows_OD: torch.Tensor, directions: int, *, seed: int) -> torch.Tensor:
    """Return the leading directions of the row space: [D, R] float64, orthonormal.

    By subspace iteration from a drawn start (arXiv 0909.4061, algorithm 4.4): exact where there are
    no more directions than are asked for.
    """
    width = min(directions + _OVERSAMPLED, *rows_OD.shape)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rows_OD.shape[1], width, generator=generator, dtype=torch.float64)
    for _ in range(_PASSES):
        basis = torch.linalg.qr(rows_OD.T @ torch.linalg.qr(rows_OD @ basis).Q).Q
    turned = torch.linalg.svd(rows_OD @ basis, full_matrices=False).Vh.T
    leading: torch.Tensor = basis @ turned[:, :directions]
    return leading


def outside(span_DR: torch.Tensor, read_ND: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return which share of each vector lies outside the span: [N]; 1 at a right angle to it."""
    left = read_ND - (read_ND @ span_DR) @ span_DR.T
    shares: npt.NDArray[np.float64] = (
        left.norm(dim=1) / read_ND.norm(dim=1).clamp_min(1e-30)
    ).numpy()
    return shares


def guess(
    module: Any,  # noqa: ANN401
    readers: list[Reader],
    matrices: list[torch.Tensor],
    *,
    sequences: int,
    sequence_tokens: int,
    seed: int,
    on_position: Callable[[int], None] = lambda _done: None,
) -> Guess:
    """Return what a vector says of the text, if it were the gradient of so small a batch.

    A beam search of fixed width: its work follows from the numbers alone. There is no threshold, so
    something comes of any vector, and whether it is right is for whoever has the text to say. Where
    the span would be the whole space, its leading directions are taken. A text of one token over
    and over reads as its first token does where positions only turn queries and keys: it would fit
    with every first token, so such guesses stand behind the others.

    Args:
        module: With the parameters that the vector starts from, not training.
        readers: Of its first two blocks.
        matrices: What the vector has of each: [O, D].
        sequences: B, how many to look for.
        sequence_tokens: T of each.
        seed: Of the search for the span.
        on_position: Told how many positions are done.
    """
    many = sequences * sequence_tokens
    spans = [span_of(rows_OD, many, seed=seed) for rows_OD in matrices]
    vocabulary = module.get_input_embeddings().num_embeddings
    alone = np.arange(vocabulary)[:, None]
    shares = outside(spans[0], read_by(module, readers[0], alone))
    best = shares
    matters = _position_matters(module, readers[0])
    beam, summed = np.zeros((1, 0), np.int64), np.zeros(1)
    for position in range(sequence_tokens):
        if matters and position:
            filled = np.pad(alone, ((0, 0), (position, 0)))
            shares = outside(spans[0], read_by(module, readers[0], filled))
            best = np.minimum(best, shares)
        candidates = np.argsort(shares, kind="stable")[:many]
        longer = np.concatenate(
            [np.repeat(beam, len(candidates), 0), np.tile(candidates, len(beam))[:, None]], 1
        )
        total = np.repeat(summed, len(candidates)) + outside(
            spans[1], read_by(module, readers[1], longer)
        )
        kept = np.argsort(total, kind="stable")[:_BEAM]
        beam, summed = longer[kept], total[kept]
        on_position(position + 1)
    is_one_token = (beam == beam[:, :1]).all(1)
    beam = beam[np.argsort(is_one_token, kind="stable")]
    return Guess(tokens=np.argsort(best, kind="stable"), sequences=beam[:sequences])


def _position_matters(module: torch.nn.Module, reader: Reader) -> bool:
    twice = np.zeros((1, 2), np.int64)
    first, second = (read_by(module, reader, twice[:, :n]) for n in (1, 2))
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-6)
