"""The sparse codec: what is chosen, at which magnitudes, and what is refused."""

import numpy as np
import pytest

from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.topk import CHUNK

TOPK = codec_named("topk")


def round_trip(values: Float32Array) -> Float32Array:
    return TOPK.decode(TOPK.encode(values), len(values))


def noise(elements: int, *, seed: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(elements, np.float32)


def spoiled(data: bytes, byte: int, value: int) -> bytes:
    changed = bytearray(data)
    changed[byte] = value
    return bytes(changed)


def test_of_a_chunk_the_64_largest_are_sent_with_their_sign() -> None:
    values = noise(2 * CHUNK, seed=1)
    decoded = round_trip(values)
    for start in (0, CHUNK):
        chunk, got = values[start : start + CHUNK], decoded[start : start + CHUNK]
        largest = np.argsort(-np.abs(chunk))[:64]
        assert set(np.flatnonzero(got)) == set(largest)
        np.testing.assert_array_equal(np.sign(got[largest]), np.sign(chunk[largest]))


def test_of_equal_magnitudes_the_first_are_sent() -> None:
    values = np.tile(np.float32([1.0, -1.0]), CHUNK // 2)
    values[4000] = 2.0
    decoded = round_trip(values)
    assert list(np.flatnonzero(decoded)) == [*range(63), 4000]


def test_a_short_chunk_sends_one_of_every_64_begun() -> None:
    for elements, sent in ((1, 1), (64, 1), (65, 2), (CHUNK + 1, 65), (CHUNK + 129, 67)):
        assert np.count_nonzero(round_trip(noise(elements, seed=elements))) == sent


def test_each_chunk_has_two_magnitudes_that_are_values_of_its_own() -> None:
    values = np.zeros(CHUNK, np.float32)
    values[10:74] = np.arange(1, 65)  # exact in bfloat16
    decoded = round_trip(values)
    # ranks 7 * 64 / 16 and 15 * 64 / 16 of 1 ... 64, counted from 0; 45 is half-way
    assert (decoded[10 : 10 + 45] == 29.0).all()
    assert (decoded[10 + 45 : 74] == 61.0).all()


def test_an_outlier_does_not_move_the_others() -> None:
    values = noise(CHUNK, seed=2)
    decoded = round_trip(values)
    values[np.argmax(np.abs(values))] *= 1e6
    np.testing.assert_array_equal(np.abs(round_trip(values)), np.abs(decoded))


def test_zeros_that_are_sent_stay_zero() -> None:
    values = np.zeros(CHUNK, np.float32)
    values[[7, 1000, 4095]] = [0.75, -0.5, 0.25]
    # of three, the largest by rank 15 * 3 // 16; .25 is below half of it
    np.testing.assert_array_equal(
        round_trip(values)[[7, 1000, 4095]], np.float32([0.75, -0.75, 0.0])
    )
    assert np.count_nonzero(round_trip(values)) == 2


def test_a_single_value_comes_through() -> None:
    values = np.zeros(CHUNK, np.float32)
    values[4095] = -3.0
    np.testing.assert_array_equal(round_trip(values), values)


def test_what_was_decoded_is_a_fixed_point() -> None:
    for seed in range(20):
        values = noise(CHUNK + 777, seed=seed)
        values[: 64 * seed] = 0
        values[CHUNK - 200 * seed :] *= np.float32(1e-40)
        once = round_trip(values)
        np.testing.assert_array_equal(round_trip(once), once)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0x3F80, 0x3F00, "low magnitude above the high one"),
        (0xBF80, 0x3F80, "magnitude that is negative"),
        (0x8000, 0x3F80, "magnitude that is negative"),
        (0x3F80, 0x7FC0, "NaN or infinite"),
    ],
)
def test_magnitudes_that_no_encoder_writes_are_refused(low: int, high: int, message: str) -> None:
    data = np.uint16([low, high]).astype("<u2").tobytes() + bytes(TOPK.encoded_bytes(64) - 4)
    with pytest.raises(RejectedError, match=message):
        TOPK.decode(data, 64)


def test_repeated_unsorted_and_missing_places_are_refused() -> None:
    data = TOPK.encode(np.arange(1, 129, dtype=np.float32))  # 126 and 127 are sent
    assert data[5:] == bytes([126, 127 << 4 & 0xFF, 127 >> 4])
    for first, message in ((127, "repeated"), (128, "not in order")):
        with pytest.raises(RejectedError, match=message):
            TOPK.decode(spoiled(data, 5, first), 128)
    with pytest.raises(RejectedError, match="a place after its last element"):
        TOPK.decode(spoiled(data, 7, 8), 128)


def test_bits_without_an_element_are_refused() -> None:
    data = TOPK.encode(np.float32([1.0]))
    assert data == bytes.fromhex("803f803f 00 0000")
    for byte, value in ((4, 0b100), (6, 0x10)):
        with pytest.raises(RejectedError, match="bits after its last element"):
            TOPK.decode(spoiled(data, byte, value), 1)


def test_a_distinction_without_a_difference_is_refused() -> None:
    data = TOPK.encode(np.float32([1.0]))
    with pytest.raises(RejectedError, match="two magnitudes apart that are equal"):
        TOPK.decode(spoiled(data, 4, 1), 1)
    with pytest.raises(RejectedError, match="zero with a minus sign"):
        TOPK.decode(bytes([0, 0, 0, 0, 2, 0, 0]), 1)
