"""Error feedback: nothing that a codec drops is lost."""

import numpy as np
import pytest

from tapestry.errors import RejectedError
from tapestry.params.codecs import CODECS, Float32Array, codec_named
from tapestry.params.feedback import encode_compensated, residual_if_refused

TOPK = codec_named("topk")
DECAY = 0.95


def noise(*, seed: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(5000, np.float32)


def test_only_the_sparse_codec_takes_feedback() -> None:
    decays = {name: codec.feedback_decay for name, codec in CODECS.items()}
    assert decays == dict.fromkeys(CODECS) | {"topk": DECAY}
    with pytest.raises(ValueError, match="int8 takes no error feedback"):
        encode_compensated(CODECS["int8"], noise(seed=1), None)


def test_the_first_round_sends_what_the_codec_takes_and_keeps_the_rest() -> None:
    delta = noise(seed=1)
    sent = encode_compensated(TOPK, delta, None)
    assert sent.data == TOPK.encode(delta)
    np.testing.assert_array_equal(sent.decoded, TOPK.decode(sent.data, len(delta)))
    np.testing.assert_array_equal(sent.residual, delta - sent.decoded)


def test_a_round_agrees_with_plain_python() -> None:
    delta, residual = noise(seed=1), noise(seed=2)
    sent = encode_compensated(TOPK, delta, residual)
    decay = np.float32(DECAY)
    total = np.float32([decay * e + d for e, d in zip(residual, delta, strict=True)])
    assert sent.data == TOPK.encode(total)
    left = [a - c for a, c in zip(total, TOPK.decode(sent.data, len(total)), strict=True)]
    np.testing.assert_array_equal(sent.residual, np.float32(left))


def test_what_is_given_is_not_changed() -> None:
    delta, residual = noise(seed=1), noise(seed=2)
    kept = delta.copy(), residual.copy()
    residual.flags.writeable = False  # as a mapped file is
    encode_compensated(TOPK, delta, residual)
    np.testing.assert_array_equal(delta, kept[0])
    np.testing.assert_array_equal(residual, kept[1])


def test_a_diverged_pseudo_gradient_is_refused() -> None:
    largest = np.full(5000, np.finfo(np.float32).max)
    for delta in (largest, np.full(5000, np.nan, np.float32)):
        with pytest.raises(RejectedError, match="training has diverged"):
            encode_compensated(TOPK, delta, largest)


def test_sent_and_kept_together_are_all_that_came_in() -> None:
    residual, sent_total = None, np.zeros(5000)
    came_in, residual_exact = np.zeros(5000), np.zeros(5000)
    for seed in range(30):
        delta = noise(seed=seed)
        sent = encode_compensated(TOPK, delta, residual)
        residual = sent.residual
        came_in += delta
        came_in -= (1 - DECAY) * residual_exact  # what decays is given up
        residual_exact = residual.astype(np.float64)
        sent_total += sent.decoded
    np.testing.assert_allclose(sent_total + residual_exact, came_in, atol=1e-4)


def test_a_refused_contribution_leaves_what_a_silent_round_would() -> None:
    delta, residual = noise(seed=1), noise(seed=2)
    sent = encode_compensated(TOPK, delta, residual)
    kept = residual_if_refused(TOPK, sent.data, sent.residual)
    np.testing.assert_allclose(kept, np.float32(DECAY) * residual + delta, rtol=0, atol=1e-6)


def test_equal_elements_take_turns() -> None:
    residual, times = None, np.zeros(4096, int)
    for _ in range(4096 // 64):
        sent = encode_compensated(TOPK, np.ones(4096, np.float32), residual)
        residual = sent.residual
        times += sent.decoded != 0
    assert (times == 1).all()
