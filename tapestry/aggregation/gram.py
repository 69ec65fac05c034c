"""Inner products of all contributions, accumulated fragment by fragment.

Everything that a rule of distances needs to know about K vectors of P elements is K + 1 points'
inner products: the contributions' and the origin's ("change nothing"), about a common centre. The
centre is the mean of the contributions, long ones shortened to the median length so that no liar
can carry it away, and is subtracted before anything is multiplied: what all have in common would
otherwise swallow the differences (uncentred, squared distances of contributions that are close to
each other come out negative in float32; centred they are good to 1e-6).

A reduction: its last digits may differ between machines and numbers of threads. So the rules'
*weights* are recorded, and whoever repeats the round takes the recorded ones.

Shapes: K contributions, J = K + 1 points (the origin is the last), n elements, c columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tapestry.aggregation.contributions import (
    WeightedContribution,
    block_columns,
    column_blocks,
    decode_into,
    longest_fragment,
)
from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of K contributions and the origin about a common centre."""

    products: Float64Array
    """[J, J]."""

    @property
    def contributions(self) -> int:
        """K."""
        return len(self.products) - 1

    def distances(self) -> Float64Array:
        """Return [J, J]: distances between all points; the last column holds the K norms."""
        own = np.diagonal(self.products)
        squared = own[:, None] + own[None, :] - 2 * self.products
        np.fill_diagonal(squared, 0.0)
        return np.sqrt(np.maximum(squared, 0.0))

    def distances_to(self, weights_J: Float64Array) -> Float64Array:
        """Return the K distances of the contributions to the point sum(weights_J * points).

        Args:
            weights_J: They sum to 1, with what the origin has.
        """
        inner_J = self.products @ weights_J
        squared = np.diagonal(self.products) - 2 * inner_J + weights_J @ inner_J
        return np.sqrt(np.maximum(squared[:-1], 0.0))

    def mixed(self, mixing_KK: Float64Array) -> "Gram":
        """Return the inner products of mixtures of the contributions.

        Args:
            mixing_KK: A mixture's shares of the contributions in each row, which sums to 1.
        """
        mixing_JJ = np.eye(len(self.products))
        mixing_JJ[:-1, :-1] = mixing_KK
        return Gram(mixing_JJ @ self.products @ mixing_JJ.T)


def gram_of(contributions: Sequence[WeightedContribution], layout: ParameterLayout) -> Gram:
    """Return the inner products of the clipped contributions, in the order given.

    Reads every fragment once and holds one of each contribution.

    Raises:
        RejectedError: A fragment does not decode, or a contribution has NaN or infinite elements,
            which show in its inner product with itself.
    """
    points = len(contributions) + 1
    rows_KN = np.empty((len(contributions), longest_fragment(layout)), np.float32)
    products_JJ = np.zeros((points, points))
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        fragment_KN = rows_KN[:, : stop - start]
        for row, contribution in zip(fragment_KN, contributions, strict=True):
            decode_into(contribution, index, row)
            if contribution.clip_factor != 1:
                np.multiply(row, np.float32(contribution.clip_factor), out=row)
        products_JJ += _fragment_products(fragment_KN)
    if not np.isfinite(products_JJ).all():
        raise RejectedError("a contribution has NaN or infinite elements: it cannot be aggregated")
    return Gram(products_JJ)


def _fragment_products(rows_KN: Float32Array) -> Float64Array:
    """Return the inner products of a fragment: [J, J], summed in float64 over blocks."""
    contributions, elements = rows_KN.shape
    points = contributions + 1
    scratch = np.empty(points * block_columns(rows=points), np.float32)
    products_JJ = np.zeros((points, points))
    for block in column_blocks(elements, rows=points):
        width = block.stop - block.start
        centred_JC = scratch[: points * width].reshape(points, width)
        with np.errstate(over="ignore", invalid="ignore"):
            centre_C = _shortening(rows_KN[:, block]) @ rows_KN[:, block]
            np.subtract(rows_KN[:, block], centre_C, out=centred_JC[:-1])
            np.negative(centre_C, out=centred_JC[-1])
            partial_JJ = centred_JC @ centred_JC.T
        if np.isfinite(partial_JJ).all():
            products_JJ += partial_JJ
        else:
            products_JJ += _wide_products(rows_KN[:, block])
    return products_JJ


def _shortening(rows_KC: Float32Array) -> Float32Array:
    """Return [K] shares whose weighted sum of rows no single row can move far."""
    lengths_K = np.sqrt(np.array([row @ row for row in rows_KC], np.float64))
    longest = float(np.median(lengths_K))
    shares_K = np.ones_like(lengths_K)
    np.divide(longest, lengths_K, out=shares_K, where=lengths_K > longest)
    return (shares_K / len(rows_KC)).astype(np.float32)


def _wide_products(rows_KC: Float32Array) -> Float64Array:
    """Return the inner products of a block whose squares are too large for float32."""
    points_JC = np.zeros((len(rows_KC) + 1, rows_KC.shape[1]))
    points_JC[:-1] = rows_KC
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite elements: the caller refuses
        points_JC -= _shortening(rows_KC) @ rows_KC
        products_JJ: Float64Array = points_JC @ points_JC.T
    return products_JJ
