"""Quantised steps between checkpoints, against golden bytes (tests/vectors/make_codecs.py)."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array
from tapestry.params.downlink import (
    DOWNLINK_CODECS,
    apply_step,
    downlink_codec_named,
    encode_step,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "downlink.json").read_text())
NAMES = sorted(DOWNLINK_CODECS)


def from_patterns(patterns: str) -> Float32Array:
    return np.array([int(word, 16) for word in patterns.split()], np.uint32).view(np.float32)


def noise(*, seed: int, scale: float = 1.0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(3000, np.float32) * np.float32(scale)


@pytest.mark.parametrize(
    "vector", GOLDEN, ids=[f"{vector['name']}, {vector['codec']}" for vector in GOLDEN]
)
def test_golden_steps_to_the_bit(vector: dict[str, Any]) -> None:
    codec = downlink_codec_named(vector["codec"])
    held, exact = from_patterns(vector["held"]), from_patterns(vector["exact"])
    residual = from_patterns(vector["residual"]) if "residual" in vector else None
    step = encode_step(codec, held, exact, residual)
    expected = vector["step"]
    assert step.data.hex() == expected["bytes"]
    assert step.held.tobytes() == from_patterns(expected["held"]).tobytes()
    assert step.residual.tobytes() == from_patterns(expected["residual"]).tobytes()


def test_every_codec_has_golden_steps() -> None:
    assert {vector["codec"] for vector in GOLDEN} == set(NAMES) == {"delta-int4", "delta-int8"}


@pytest.mark.parametrize("name", NAMES)
def test_a_member_comes_to_the_same_bits_as_the_coordinator(name: str) -> None:
    codec = downlink_codec_named(name)
    coordinator = member = noise(seed=0)
    for seed in range(1, 6):
        step = encode_step(codec, coordinator, coordinator + noise(seed=seed, scale=0.01))
        coordinator, member = step.held, apply_step(codec, member, step.data)
        assert coordinator.tobytes() == member.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keeps_exact_state", [True, False])
def test_what_steps_drop_does_not_add_up(name: str, *, keeps_exact_state: bool) -> None:
    codec = downlink_codec_named(name)
    exact = start = noise(seed=0)
    held, residual = start, None
    moves = [noise(seed=seed, scale=0.01) for seed in range(1, 31)]
    for move in moves:
        if keeps_exact_state:
            exact = exact + move
            step = encode_step(codec, held, exact)
        else:
            step = encode_step(codec, held, held + move, residual)
            residual = step.residual
        held = step.held
    wanted = start + np.sum(moves, axis=0, dtype=np.float64)
    last_error = np.abs(step.residual).max()
    assert np.abs(held - wanted).max() <= last_error + 1e-5
    assert last_error < 0.02 / (7 if name == "delta-int4" else 127) * 4


def test_without_feedback_what_is_dropped_does_add_up() -> None:
    codec = downlink_codec_named("delta-int4")
    held = start = noise(seed=0)
    moves = [noise(seed=seed, scale=0.01) for seed in range(1, 31)]
    for move in moves:
        step = encode_step(codec, held, held + move)
        held = step.held
    wanted = start + np.sum(moves, axis=0, dtype=np.float64)
    assert np.abs(held - wanted).max() > 2 * np.abs(step.residual).max()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_to_where_one_stands_changes_nothing(name: str) -> None:
    held = noise(seed=1)
    step = encode_step(downlink_codec_named(name), held, held)
    np.testing.assert_array_equal(step.held, held)
    assert not step.residual.any()


def test_fragments_of_different_lengths_are_refused() -> None:
    held = noise(seed=1)
    with pytest.raises(RejectedError, match="has 3,000 elements, the exact one 2,999"):
        encode_step(downlink_codec_named("delta-int8"), held, held[1:])


def test_a_step_to_infinity_is_refused() -> None:
    largest = np.finfo(np.float32).max
    codec = downlink_codec_named("delta-int8")
    step = struct.pack("<fb", largest / 128, 127)
    with pytest.raises(RejectedError, match="NaN or infinite parameters"):
        apply_step(codec, np.float32([largest]), step)


def test_a_state_out_of_reach_is_refused() -> None:
    largest = np.finfo(np.float32).max
    held = np.float32([-largest])
    for exact in (largest, np.inf, np.nan):
        with pytest.raises(RejectedError, match="NaN or infinite"):
            encode_step(downlink_codec_named("delta-int8"), held, np.float32([exact]))


def test_an_unknown_downlink_codec_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RejectedError, match="delta-int4, delta-int8"):
        downlink_codec_named("delta-topk")
