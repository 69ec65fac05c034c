"""RDA: averaging directions and lengths apart, tensor by tensor.

Pseudo-gradients of different institutions are nearly orthogonal, so the length of their mean
shrinks as 1 / sqrt(K). RDA (Decoupled DiLoCo, arXiv 2604.21428) keeps it: for every tensor,
d = sum w_k D_k / |D_k| is the direction, and the result is (sum w_k |D_k|) * d / |d|. Embeddings,
heads, norms and everything of one dimension take the plain mean, and so does a tensor whose
directions cancel.

A direction counts the same however short the contribution is: a language that moves a tensor a
little is heard as well as one that moves it much, and so is a liar, within its weight.

The norms are sums in float64 in an order that only the layout decides, so unlike the Gram matrix
they are the same to the bit on every machine, and need not be recorded. It takes two passes
before the one that sums: one for the norms of D_k, one for the norm of d.

Shapes: K contributions, T tensors, n elements of a fragment.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tapestry.aggregation.contributions import (
    WeightedContribution,
    column_blocks,
    decode_into,
    in_member_order,
    longest_fragment,
)
from tapestry.aggregation.gram import Float64Array
from tapestry.aggregation.mean import add_weighted
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout, TensorSpec

CANCELLED = 0.05
"""Below this length, as a share of the weights' sum, directions have cancelled each other."""
NO_DIRECTION = 1e-7
"""A tensor shorter than this part of its contribution is rounding noise without a direction."""
_SHORTEST = 1e-12
"""A direction is not scaled up further than by the inverse of this, of the tensor's mean length."""
_SMALLEST_NORM = 1e-30
"""Its inverse is a float32."""
_PLAIN_WORDS = ("embed", "norm", "wte", "wpe")
_SUM_ELEMENTS = 2**14


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a tensor, or of several that are merged alike, in one fragment."""

    tensor: int
    """Index among the directional tensors; -1 for plain ones."""
    start: int
    stop: int
    """Elements of the fragment, counted from its first."""


def is_directional(tensor: TensorSpec) -> bool:
    """Whether RDA applies to a tensor; embeddings, heads, norms and biases take the plain mean."""
    words = tensor.name.lower().split(".")
    plain = any(part in word for word in words for part in _PLAIN_WORDS) or any(
        word.endswith("head") for word in words
    )
    return len(tensor.shape) > 1 and not plain


class RdaMerge:
    """Sums fragments with weights that keep the length of every directional tensor."""

    def __init__(
        self, contributions: Sequence[WeightedContribution], layout: ParameterLayout
    ) -> None:
        """Pass over all fragments twice, for the norms.

        Raises:
            RejectedError: A recorded fragment does not decode.
        """
        self._contributions = [c for c in in_member_order(contributions) if c.weight != 0]
        self._layout = layout
        self._directional = [t for t in layout.tensors if is_directional(t)]
        self._decoded = np.empty(longest_fragment(layout), np.float32)
        self._plain_K = np.array([c.weight * c.clip_factor for c in self._contributions])
        self._weights_TK = self._length_keeping_weights()

    def __call__(self, index: int, out: Float32Array) -> None:
        """Add up fragment `index`."""
        self._add_up(index, out, self._weights_TK)

    def _length_keeping_weights(self) -> Float64Array:
        """Return [T, K]: what to multiply each contribution's tensors by."""
        norms_TK = self._tensor_norms()
        whole_K = np.array([math.sqrt(math.fsum(norms_K**2)) for norms_K in norms_TK.T])
        weights_K = np.array([c.weight for c in self._contributions])
        mean_T = np.array([math.fsum(self._plain_K * norms_K) for norms_K in norms_TK])
        shortest_TK = np.maximum(NO_DIRECTION * whole_K, _SHORTEST * mean_T[:, None])
        directions_TK = np.zeros_like(norms_TK)
        np.divide(
            weights_K,
            norms_TK,
            out=directions_TK,
            where=norms_TK > np.maximum(shortest_TK, _SMALLEST_NORM),
        )
        weights_TK = np.tile(self._plain_K, (len(norms_TK), 1))
        total = math.fsum(weights_K)
        for tensor, length in enumerate(self._direction_norms(directions_TK)):
            if length > CANCELLED * total:
                weights_TK[tensor] = directions_TK[tensor] * (mean_T[tensor] / length)
        return weights_TK

    def _tensor_norms(self) -> Float64Array:
        """Return [T, K]: the norms of the decoded contributions, before clipping."""
        squares: list[list[list[float]]] = [
            [[] for _ in self._contributions] for _ in self._directional
        ]
        for index in range(self._layout.fragments):
            start, stop = self._layout.bounds(index)
            decoded, pieces = self._decoded[: stop - start], self._directional_pieces(index)
            for k, contribution in enumerate(self._contributions):
                decode_into(contribution, index, decoded)
                for piece in pieces:
                    square = ordered_square_sum(decoded[piece.start : piece.stop])
                    squares[piece.tensor][k].append(square)
        norms = [[math.sqrt(math.fsum(parts)) for parts in row] for row in squares]
        return np.array(norms, np.float64).reshape(len(squares), len(self._contributions))

    def _direction_norms(self, directions_TK: Float64Array) -> list[float]:
        """Return the T norms of the summed directions."""
        squares: list[list[float]] = [[] for _ in self._directional]
        summed = np.empty_like(self._decoded)
        for index in range(self._layout.fragments):
            start, stop = self._layout.bounds(index)
            self._add_up(index, summed[: stop - start], directions_TK)
            for piece in self._directional_pieces(index):
                squares[piece.tensor].append(ordered_square_sum(summed[piece.start : piece.stop]))
        return [math.sqrt(math.fsum(parts)) for parts in squares]

    def _add_up(self, index: int, out: Float32Array, weights_TK: Float64Array) -> None:
        """Put the weighted sum into `out`: plain tensors by plain weights."""
        out.fill(0)
        decoded = self._decoded[: out.size]
        pieces = list(self._pieces(index))
        for k, contribution in enumerate(self._contributions):
            decode_into(contribution, index, decoded)
            for piece in pieces:
                weight = self._plain_K[k] if piece.tensor < 0 else weights_TK[piece.tensor, k]
                for block in column_blocks(piece.stop - piece.start, rows=2):
                    columns = slice(piece.start + block.start, piece.start + block.stop)
                    add_weighted(out[columns], decoded[columns], float(weight))

    def _directional_pieces(self, index: int) -> list[_Piece]:
        return [piece for piece in self._pieces(index) if piece.tensor >= 0]

    def _pieces(self, index: int) -> Iterator[_Piece]:
        """Yield what lies in fragment `index`, in vector order."""
        start, stop = self._layout.bounds(index)
        reached = start
        for number, tensor in enumerate(self._directional):
            first, last = max(tensor.offset, start), min(tensor.offset + tensor.size, stop)
            if first < last:
                if reached < first:
                    yield _Piece(-1, reached - start, first - start)
                yield _Piece(number, first - start, last - start)
                reached = last
        if reached < stop:
            yield _Piece(-1, reached - start, stop - start)


def ordered_square_sum(values: Float32Array) -> float:
    """Return the sum of squares of [n] float32 in float64, the same to the bit everywhere.

    Blocks of 2**14 are halved by elementwise additions until one number is left (the tree depends
    on the length alone); the blocks' numbers are added exactly and rounded once.
    """
    folded = np.empty(min(len(values), _SUM_ELEMENTS))
    sums = []
    for start in range(0, len(values), _SUM_ELEMENTS):
        block = values[start : start + _SUM_ELEMENTS]
        left = len(block)
        np.multiply(block, block, out=folded[:left], dtype=np.float64)
        while left > 1:
            half = left // 2
            np.add(folded[:half], folded[left - half : left], out=folded[:half])
            left -= half
        sums.append(float(folded[0]))
    return math.fsum(sums)
