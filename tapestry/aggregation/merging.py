"""Combine the same fragment of every contribution: by weights, or coordinate by coordinate.

A merge holds its buffers for a whole round and is called once a fragment, in any order.

Shapes: K contributions, n elements of a fragment, c columns of a block.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tapestry.aggregation.contributions import (
    WeightedContribution,
    block_columns,
    column_blocks,
    decode_into,
    in_member_order,
    longest_fragment,
)
from tapestry.aggregation.mean import add_weighted
from tapestry.aggregation.trimmed_mean import trimmed_mean
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout


class Merge(Protocol):
    """Put the aggregate's fragment `index` into `out` ([n] float32)."""

    def __call__(self, index: int, out: Float32Array) -> None:
        """Raise RejectedError if a recorded fragment does not decode."""
        ...


class WeightedMean:
    """The sum of every contribution times its weight times its clip factor."""

    def __init__(
        self, contributions: Sequence[WeightedContribution], layout: ParameterLayout
    ) -> None:
        """Reserve one fragment."""
        self._contributions = in_member_order(contributions)
        self._decoded = np.empty(longest_fragment(layout), np.float32)

    def __call__(self, index: int, out: Float32Array) -> None:
        """Add up fragment `index`; a contribution without weight is not read."""
        out.fill(0)
        decoded = self._decoded[: out.size]
        for contribution in self._contributions:
            weight = contribution.weight * contribution.clip_factor
            if weight != 0:
                decode_into(contribution, index, decoded)
                for block in column_blocks(out.size, rows=2):
                    add_weighted(out[block], decoded[block], weight)


class TrimmedMean:
    """Each coordinate's mean without its extremes, of clipped and perhaps mixed contributions."""

    def __init__(
        self,
        contributions: Sequence[WeightedContribution],
        layout: ParameterLayout,
        *,
        trim: int,
    ) -> None:
        """Reserve a fragment of every contribution.

        Args:
            contributions: In any order.
            layout: Of the vector.
            trim: Values dropped at either end, 2 * trim < K; the most make it the median.
        """
        self._contributions = in_member_order(contributions)
        self._trim = trim
        count = len(self._contributions)
        self._rows_KN = np.empty((count, longest_fragment(layout)), np.float32)
        positions = {part.member_id: k for k, part in enumerate(self._contributions)}
        self._neighbours = [
            sorted(positions[member] for member in part.neighbours) for part in self._contributions
        ]
        self._is_mixed = any(self._neighbours)
        mixtures = count if self._is_mixed else 0
        self._rows_at_once = count + mixtures + 1
        self._scratch_KC = np.empty(
            (1 + mixtures, block_columns(rows=self._rows_at_once)), np.float32
        )

    def __call__(self, index: int, out: Float32Array) -> None:
        """Combine fragment `index`, block by block."""
        rows_KN = self._rows_KN[:, : out.size]
        for row, contribution in zip(rows_KN, self._contributions, strict=True):
            decode_into(contribution, index, row)
        for block in column_blocks(out.size, rows=self._rows_at_once):
            rows = [row[block] for row in rows_KN]
            spare, *mixtures = self._scratch_KC[:, : block.stop - block.start]
            for row, contribution in zip(rows, self._contributions, strict=True):
                if contribution.clip_factor != 1:
                    np.multiply(row, np.float32(contribution.clip_factor), out=row)
            if self._is_mixed:
                self._mix(rows, mixtures)
                rows = mixtures
            trimmed_mean(rows, trim=self._trim, out=out[block], spare=spare)

    def _mix(self, rows: list[Float32Array], mixtures: list[Float32Array]) -> None:
        """Put into every mixture the mean of its neighbours' rows, which are scaled for it.

        To the bit: every row times float32(1 / neighbours), then added in member order.
        """
        share = np.float32(1 / len(self._neighbours[0]))
        for row in rows:
            np.multiply(row, share, out=row)
        for mixture, neighbours in zip(mixtures, self._neighbours, strict=True):
            mixture.fill(0)
            for neighbour in neighbours:
                np.add(mixture, rows[neighbour], out=mixture)
