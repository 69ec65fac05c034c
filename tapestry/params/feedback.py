"""Error feedback: what a lossy codec drops is kept at the sender and added next round.

With the residual e (zero at first), the pseudo-gradient delta and the codec Q, a round is

    a = decay * e + delta        each product and sum rounded to float32
    send c = Q(a)
    e = a - decode(c)            once the receipt of c is durable

and e = a if c was not taken, so that nothing is lost: the node goes on as if it had sent nothing.
Whatever becomes of c, the node needs no more than the new residual and the encoded bytes, since
a = (a - decode(c)) + decode(c). The residual is private: it never leaves the node.

T5 of the project's reference; Seide et al., 2014; Karimireddy et al., 2019 (arXiv 1901.09847);
with decay, SparseLoCo (arXiv 2508.15706), whose outer momentum it replaces.

Shapes: n elements of a fragment.
"""

from dataclasses import dataclass

import numpy as np

from tapestry.params.codecs import Codec, Float32Array


@dataclass(frozen=True, slots=True)
class Compensated:
    """One encoded fragment and what it leaves behind."""

    data: bytes
    decoded: Float32Array
    """[n] float32, what the receiver will read."""
    residual: Float32Array
    """[n] float32, the new residual if the receiver takes `data`."""


def encode_compensated(
    codec: Codec, delta: Float32Array, residual: Float32Array | None
) -> Compensated:
    """Encode a fragment of the pseudo-gradient and what earlier rounds left of it.

    Args:
        codec: One with a `feedback_decay`.
        delta: [n] float32, not changed.
        residual: [n] float32 as the newest receipt left it, not changed; None for zeros.

    Raises:
        RejectedError: An element is NaN, infinite, or too large: training has diverged.
        ValueError: The codec takes no error feedback.
    """
    if codec.feedback_decay is None:
        raise ValueError(f"the codec {codec.name} takes no error feedback")
    total = np.zeros_like(delta) if residual is None else residual.astype(np.float32)
    np.multiply(total, np.float32(codec.feedback_decay), out=total)
    with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses what is not finite
        np.add(total, delta, out=total)
    data = codec.encode(total)
    decoded = codec.decode(data, len(total))
    np.subtract(total, decoded, out=total)
    return Compensated(data, decoded, total)


def residual_if_refused(codec: Codec, data: bytes, residual: Float32Array) -> Float32Array:
    """Return the residual that keeps what was not taken.

    Args:
        codec: As the fragment was encoded.
        data: The encoded fragment.
        residual: [n] float32, the residual that would hold if `data` had been taken.

    Returns:
        [n] float32, decay * e + delta of that round, to the last place or the one before.

    Raises:
        RejectedError: `data` is damaged.
    """
    kept = codec.decode(data, len(residual))
    np.add(kept, residual, out=kept)
    return kept
