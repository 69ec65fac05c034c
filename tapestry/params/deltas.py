"""Pseudo-gradients: what the inner steps did, and how large it is."""

import math

import numpy as np

from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array

_BLOCK_ELEMENTS = 2**15
"""256 KiB of float64, few enough for a cache."""
_ROW_ELEMENTS = 1024
_LEAST_SURE = 1e-30
"""What single precision loses of a million squares by underflow is less than a millionth of it."""


def pseudo_gradient(base: Float32Array, local: Float32Array) -> Float32Array:
    """Return what the inner steps did, signed as a gradient.

    The sign is base - local, so an outer optimizer that steps *against* it moves the base
    towards the local model (DiLoCo, arXiv 2311.08105).

    Args:
        base: [n] float32, parameters of the round's base checkpoint.
        local: [n] float32, the same parameters after the inner steps.

    Returns:
        [n] float32, in parameter units; not divided by a learning rate.

    Raises:
        RejectedError: The lengths differ.
    """
    if base.shape != local.shape:
        raise RejectedError(
            f"local model has {local.size:,} parameters, base checkpoint has {base.size:,}: "
            "both must be built from the same model configuration"
        )
    return base - local


def squared_norm(values: Float32Array) -> float:
    """Return the sum of squares, to a millionth of itself at least.

    Singles are multiplied and added over short rows, whose sums are added as doubles: an eighth of
    the work of doubles throughout, which is left for values whose squares singles cannot hold.

    A reduction: the same on one machine, possibly another last digit on another. Whatever
    depends on a norm therefore uses the value that the round recorded.

    Args:
        values: [n] float32.
    """
    whole = len(values) - len(values) % _ROW_ELEMENTS
    rows = values[:whole].reshape(-1, _ROW_ELEMENTS)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.einsum("ij,ij->i", rows, rows).tolist()
        sums.append(float(np.dot(values[whole:], values[whole:])))
    total = math.fsum(sums)
    return total if _LEAST_SURE <= total < math.inf else _squared_norm_of_doubles(values)


def _squared_norm_of_doubles(values: Float32Array) -> float:
    wide = np.empty(min(len(values), _BLOCK_ELEMENTS), np.float64)
    sums = []
    for start in range(0, len(values), _BLOCK_ELEMENTS):
        part = values[start : start + _BLOCK_ELEMENTS]
        squares = wide[: len(part)]
        np.copyto(squares, part)
        np.multiply(squares, squares, out=squares)
        sums.append(float(squares.sum()))
    return math.fsum(sums)


def norm(squared_norms: list[float]) -> float:
    """Return the Euclidean norm of a vector from its fragments' sums of squares."""
    return math.sqrt(math.fsum(squared_norms))
