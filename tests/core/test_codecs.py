"""Codecs, against golden bytes made by exact arithmetic (tests/vectors/make_codecs.py)."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestry.errors import RejectedError
from tapestry.params.blockwise import BLOCK
from tapestry.params.codecs import CODECS, Float32Array, codec_named
from tapestry.params.floats import CACHE_ELEMENTS
from tests.vectors import make_codecs

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "codecs.json").read_text())
NAMES = sorted(CODECS)
EXACT = {name: getattr(make_codecs, name) for name in CODECS}
EXAMPLES = settings(max_examples=100, derandomize=True, deadline=None, database=None)
LARGEST = float(np.finfo(np.float32).max)


def from_patterns(patterns: str) -> Float32Array:
    bits = np.array([int(word, 16) for word in patterns.split()], np.uint32)
    return bits.view(np.float32)


def noise(elements: int, *, seed: int, scale: float = 1.0) -> Float32Array:
    values = np.random.default_rng(seed).standard_normal(elements) * scale
    return values.astype(np.float32)


@pytest.mark.parametrize(
    ("vector", "codec"),
    [
        pytest.param(vector, codec, id=f"{vector['name']}, {codec}")
        for vector in GOLDEN
        for codec in vector["encoded"]
    ],
)
def test_golden_bytes_to_the_bit(vector: dict[str, Any], codec: str) -> None:
    values = from_patterns(vector["values"])
    expected = bytes.fromhex(vector["encoded"][codec]["bytes"])
    assert CODECS[codec].encode(values) == expected
    decoded = CODECS[codec].decode(expected, len(values))
    patterns = [f"{word:08x}" for word in decoded.view(np.uint32)]
    assert " ".join(patterns) == vector["encoded"][codec]["decoded"]


@EXAMPLES
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300))
def test_any_values_become_the_bytes_of_exact_arithmetic(values: list[float]) -> None:
    array = np.array(values, np.float32)
    for name, codec in CODECS.items():
        try:
            data = codec.encode(array)
        except RejectedError as error:
            assert "too large" in str(error)  # noqa: PT017 - no bytes to compare
            assert np.abs(array).max() > LARGEST * (1 - 2.0**-8)
            continue
        expected, decoded = EXACT[name](values) if values else (b"", [])
        assert data == expected
        assert codec.decode(data, len(values)).tobytes() == np.float32(decoded).tobytes()


@EXAMPLES
@given(data=st.data(), elements=st.integers(1, 600))
def test_any_bytes_are_refused_or_decode_to_finite_values(
    data: st.DataObject, elements: int
) -> None:
    for codec in CODECS.values():
        size = codec.encoded_bytes(elements)
        junk = data.draw(st.binary(min_size=size, max_size=size))
        try:
            values = codec.decode(junk, elements)
        except RejectedError as error:
            assert codec.name in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert np.isfinite(values).all()


@pytest.mark.parametrize("codec", NAMES)
def test_the_cut_into_cache_blocks_is_not_seen(codec: str) -> None:
    values = noise(CACHE_ELEMENTS + 5000, seed=11)
    whole = CODECS[codec].decode(CODECS[codec].encode(values), len(values))
    for part in (slice(0, CACHE_ELEMENTS), slice(CACHE_ELEMENTS, len(values))):
        alone = CODECS[codec].decode(CODECS[codec].encode(values[part]), len(values[part]))
        assert whole[part].tobytes() == alone.tobytes()


@pytest.mark.parametrize("codec", NAMES)
def test_every_second_element_is_coded_like_its_copy(codec: str) -> None:
    values = noise(2000, seed=12)[::2]
    assert CODECS[codec].encode(values) == CODECS[codec].encode(values.copy())


@pytest.mark.parametrize("codec", NAMES)
def test_decoding_into_given_space_overwrites_all_of_it(codec: str) -> None:
    values = noise(5000, seed=13)
    data = CODECS[codec].encode(values)
    space = np.full(6000, np.nan, np.float32)
    CODECS[codec].decode_into(data, space[:5000])
    assert space[:5000].tobytes() == CODECS[codec].decode(data, 5000).tobytes()
    assert np.isnan(space[5000:]).all()


@pytest.mark.parametrize("codec", NAMES)
def test_bytes_that_are_not_aligned_decode_alike(codec: str) -> None:
    data = CODECS[codec].encode(noise(700, seed=14))
    shifted = memoryview(b"x" + data)[1:]
    assert CODECS[codec].decode(shifted, 700).tobytes() == CODECS[codec].decode(data, 700).tobytes()


def test_decoding_needs_contiguous_space_that_can_be_written() -> None:
    codec = CODECS["float32"]
    read_only = np.zeros(2, np.float32)
    read_only.flags.writeable = False
    for space in (np.zeros(4, np.float32)[::2], read_only):
        with pytest.raises(TypeError, match="contiguous"):
            codec.decode_into(bytes(8), space)


def test_nothing_is_encoded_as_nothing() -> None:
    for codec in CODECS.values():
        assert codec.encode(np.zeros(0, np.float32)) == b""
        assert codec.decode(b"", 0).size == 0


def test_the_sign_of_zero_survives_float32_and_bfloat16() -> None:
    minus_zero = np.array([-0.0], np.float32)
    for name in ("float32", "bfloat16"):
        codec = CODECS[name]
        assert np.signbit(codec.decode(codec.encode(minus_zero), 1))[0]


def test_every_codec_has_golden_bytes() -> None:
    assert set(GOLDEN[0]["encoded"]) == set(CODECS)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("elements", [1, 2, 255, 256, 257, 511, 512, 513, 5000])
def test_the_size_is_known_before_a_byte_is_read(codec: str, elements: int) -> None:
    data = CODECS[codec].encode(noise(elements, seed=elements))
    assert len(data) == CODECS[codec].encoded_bytes(elements)


def test_sizes_by_hand() -> None:
    # 300 elements are two blocks of 256, so two scales of 4 bytes
    sizes = {name: codec.encoded_bytes(300) for name, codec in CODECS.items()}
    assert sizes == {
        "float32": 1200,
        "bfloat16": 600,
        "int8": 2 * 4 + 300,
        "int4": 2 * 4 + 150,
        "topk": 4 + 2 + 8,  # one chunk, 5 sent: 10 bits and 60 bits
    }


def test_float32_loses_nothing() -> None:
    values = noise(1000, seed=1)
    codec = CODECS["float32"]
    np.testing.assert_array_equal(codec.decode(codec.encode(values), 1000), values)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_bfloat16_is_within_half_a_place_of_eight_digits(scale: float) -> None:
    values = noise(5000, seed=2, scale=scale)
    codec = CODECS["bfloat16"]
    decoded = codec.decode(codec.encode(values), 5000)
    assert (np.abs(decoded - values) <= np.abs(values) * 2.0**-8).all()


def test_a_full_fragment_of_topk_has_928_bits_a_chunk() -> None:
    assert CODECS["topk"].encoded_bytes(2**20) == 2**20 // 4096 * 928 // 8


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("seed", range(20))
def test_integers_are_within_half_a_step_of_their_block(seed: int, name: str, largest: int) -> None:
    rng = np.random.default_rng(seed)
    elements = int(rng.integers(1, 2000))
    values = noise(elements, seed=seed, scale=float(10.0 ** rng.integers(-20, 20)))
    codec = CODECS[name]
    decoded = codec.decode(codec.encode(values), elements)
    for start in range(0, elements, BLOCK):
        block = values[start : start + BLOCK].astype(np.float64)
        error = np.abs(decoded[start : start + BLOCK] - block).max()
        # half of max / largest, and a few roundings of float32
        assert error <= np.abs(block).max() / largest / 2 * (1 + 2.0**-14)


@pytest.mark.parametrize("codec", NAMES)
def test_encoding_what_was_decoded_changes_nothing(codec: str) -> None:
    values = noise(3000, seed=7)
    data = CODECS[codec].encode(values)
    assert CODECS[codec].encode(CODECS[codec].decode(data, 3000)) == data


def test_an_outlier_costs_precision_in_its_own_block_only() -> None:
    values = noise(2 * BLOCK, seed=3)
    values[0] = 1000.0
    codec = CODECS["int8"]
    error = np.abs(codec.decode(codec.encode(values), len(values)) - values)
    assert error[:BLOCK].max() > 0.5  # a step of 1000 / 127 = 7.9
    assert error[BLOCK:].max() < 0.02  # a step of about 3 / 127


@pytest.mark.parametrize("codec", NAMES)
def test_a_block_of_zeros_stays_zero(codec: str) -> None:
    zeros = np.zeros(300, np.float32)
    decoded = CODECS[codec].decode(CODECS[codec].encode(zeros), 300)
    np.testing.assert_array_equal(decoded, zeros)


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
def test_subnormals_never_overflow_a_code(name: str, largest: int) -> None:
    step = np.float32(2.0**-149)
    for count in (1, 3, 4, 10, 11, 63, 64, 127, 178, 190, 191):
        values = np.array([step * count, -step * count], np.float32)
        codec = CODECS[name]
        decoded = codec.decode(codec.encode(values), 2)
        assert np.abs(decoded - values).max() <= (largest + 1) // 2 * step


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_not_encoded(codec: str, bad: float) -> None:
    values = np.array([1.0, bad, 2.0], np.float32)
    with pytest.raises(RejectedError, match="training has diverged"):
        CODECS[codec].encode(values)


@pytest.mark.parametrize("codec", NAMES)
def test_what_is_encoded_can_be_decoded_up_to_the_largest_float32(codec: str) -> None:
    values = np.array([LARGEST, -LARGEST, 1.0], np.float32)
    try:
        data = CODECS[codec].encode(values)
    except RejectedError as error:
        assert "too large" in str(error)  # noqa: PT017 - either outcome is right
    else:
        CODECS[codec].decode(data, 3)


def test_bfloat16_refuses_what_would_round_to_infinity() -> None:
    with pytest.raises(RejectedError, match="too large for bfloat16"):
        CODECS["bfloat16"].encode(np.array([LARGEST], np.float32))


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("float32", struct.pack("<f", float("nan"))),
        ("float32", struct.pack("<f", float("-inf"))),
        ("bfloat16", struct.pack("<H", 0x7FC0)),
        ("bfloat16", struct.pack("<H", 0xFF80)),
        ("int8", struct.pack("<fb", float("nan"), 1)),
        ("int8", struct.pack("<fb", float("inf"), 0)),
        ("int4", struct.pack("<fb", float("nan"), 1)),
        ("int4", struct.pack("<fb", float("inf"), 0)),
        ("topk", struct.pack("<HHBH", 0, 0x7F80, 0, 0)),
        ("topk", struct.pack("<HHBH", 0x7FC0, 0x7FC0, 0, 0)),
    ],
)
def test_nan_and_infinity_are_not_decoded(codec: str, data: bytes) -> None:
    with pytest.raises(RejectedError, match="NaN or infinite"):
        CODECS[codec].decode(data, 1)


@pytest.mark.parametrize(("codec", "largest"), [("int8", 127), ("int4", 7)])
def test_a_scale_whose_product_overflows_is_refused(codec: str, largest: int) -> None:
    with pytest.raises(RejectedError, match="NaN or infinite"):
        CODECS[codec].decode(struct.pack("<fb", LARGEST, largest), 1)


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("scale", [-1.0, -0.0])
def test_a_negative_scale_is_refused(codec: str, scale: float) -> None:
    with pytest.raises(RejectedError, match="a scale that is negative"):
        CODECS[codec].decode(struct.pack("<fb", scale, 1), 1)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_codes_without_a_scale_are_refused(codec: str) -> None:
    assert CODECS[codec].decode(struct.pack("<fb", 0.0, 0), 1)[0] == 0.0
    with pytest.raises(RejectedError, match="codes in a block whose scale is 0"):
        CODECS[codec].decode(struct.pack("<fb", 0.0, 1), 1)


def test_the_code_that_no_encoder_writes_is_refused() -> None:
    with pytest.raises(RejectedError, match="code -128"):
        CODECS["int8"].decode(struct.pack("<fb", 1.0, -128), 1)
    for packed in (0x08, 0x80):  # -8 in the lower and in the upper half
        with pytest.raises(RejectedError, match="code -8"):
            CODECS["int4"].decode(struct.pack("<fB", 1.0, packed), 2)


def test_int4_has_nothing_in_the_half_after_its_last_element() -> None:
    assert CODECS["int4"].decode(struct.pack("<fB", 0.5, 0x07), 1)[0] == 3.5
    with pytest.raises(RejectedError, match="after its last element"):
        CODECS["int4"].decode(struct.pack("<fB", 0.5, 0x17), 1)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_fragment_of_another_size_is_refused(codec: str, change: int) -> None:
    size = CODECS[codec].encoded_bytes(300)
    with pytest.raises(RejectedError, match=f"300 elements has {size:,} bytes, got"):
        CODECS[codec].decode(bytes(size + change), 300)


def test_a_memoryview_is_decoded_like_bytes() -> None:
    values = noise(300, seed=5)
    for codec in CODECS.values():
        data = codec.encode(values)
        np.testing.assert_array_equal(codec.decode(memoryview(data), 300), codec.decode(data, 300))


def test_values_of_another_type_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="float64"):
        CODECS["int8"].encode(np.zeros(3))  # type: ignore[arg-type]


def test_an_unknown_codec_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RejectedError, match="bfloat16, float32, int4, int8, topk"):
        codec_named("gzip")
