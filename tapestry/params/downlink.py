"""From the checkpoint that members hold to the next one, as quantised steps.

Members hold the canonical state H. The coordinator computes the exact next state T and sends
c = Q(T - H); everybody, the coordinator as well, goes on to

    H' = H + decode(c)           a product and a sum, each rounded to float32: the same to the bit

and H' is what is hashed, published, and the base of the next round. What c dropped, T - H', comes
back by itself if the coordinator goes on from T, whose next difference is against H'. If it goes on
from H', it keeps T - H' as its residual and gives it to the next step. T18 of the project's
reference (canonical quantised state).

Shapes: n elements of a fragment.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapestry.errors import RejectedError
from tapestry.params.codecs import CODECS, Codec, Float32Array

DownlinkName = Literal["float32", "bfloat16", "delta-int8", "delta-int4"]
"""How a checkpoint goes down: whole in float32 or bfloat16, or as a step from its parent."""

DOWNLINK_CODECS = {f"delta-{name}": CODECS[name] for name in ("int8", "int4")}
"""How a step is coded, by the name that the protocol gives it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fragment's step to the next canonical state."""

    data: bytes
    """What members fetch."""
    held: Float32Array
    """[n] float32, the new canonical state."""
    residual: Float32Array
    """[n] float32, exact minus canonical: what this step dropped."""


def downlink_codec_named(name: str) -> Codec:
    """Return the codec of the steps called `name`.

    Raises:
        RejectedError: There is none in this version.
    """
    try:
        return DOWNLINK_CODECS[name]
    except KeyError:
        raise RejectedError(
            f"unknown downlink codec {name!r:.40}: this version has "
            f"{', '.join(sorted(DOWNLINK_CODECS))}"
        ) from None


def encode_step(
    codec: Codec,
    held: Float32Array,
    exact: Float32Array,
    residual: Float32Array | None = None,
) -> Step:
    """Encode the way from the state that members hold to the next.

    Args:
        codec: Of the differences.
        held: [n] float32, the canonical state that members hold; not changed.
        exact: [n] float32, the state to reach; not changed.
        residual: [n] float32, what the step before dropped, if `exact` was computed from `held`;
            None if it was computed from the exact state before, which still contains it.

    Raises:
        RejectedError: The lengths differ, or the difference is NaN, infinite or too large.
    """
    if held.shape != exact.shape or (residual is not None and residual.shape != held.shape):
        raise RejectedError(
            f"the canonical state has {held.size:,} elements, the exact one {exact.size:,}: both "
            "must be the same fragment"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses what is not finite
        target = exact if residual is None else exact + residual
        difference = target - held
    data = codec.encode(difference)
    stepped = apply_step(codec, held, data)
    return Step(data, stepped, target - stepped)


def apply_step(codec: Codec, held: Float32Array, data: bytes | memoryview) -> Float32Array:
    """Return the next canonical state, as every member computes it.

    Args:
        codec: Of the differences.
        held: [n] float32, the canonical state; not changed.
        data: The encoded step.

    Returns:
        [n] float32, `held` plus the decoded step.

    Raises:
        RejectedError: `data` is not a step of this fragment, or leads to infinity.
    """
    stepped = codec.decode(data, len(held))
    with np.errstate(over="ignore"):  # refused below
        np.add(stepped, held, out=stepped)
    if not np.isfinite(stepped).all():
        raise RejectedError("the step leads to NaN or infinite parameters: discard it")
    return stepped
