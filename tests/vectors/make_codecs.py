"""Write codecs.json and downlink.json: golden bytes, from exact rational arithmetic alone.

Imports nothing of Tapestry and no numerical library: every float32 result is the exact rational
number rounded once, to nearest and ties to even, as IEEE 754 says. Run it with
`python tests/vectors/make_codecs.py`; tests/core/test_codecs.py and test_downlink.py compare.
"""

import json
import struct
from fractions import Fraction
from pathlib import Path

BLOCK = 256
CHUNK = 4096
SMALLEST_EXPONENT = -149  # of the last place of a float32 subnormal
DIGITS = 24
BFLOAT16_DIGITS = 8


def bits(value: float) -> int:
    """Return the float32 pattern of a value that is a float32 already."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def from_bits(pattern: int) -> float:
    """Return the float32 with that pattern."""
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])


def rounded(exact: Fraction, digits: int) -> float:
    """Return `exact` with `digits` binary digits, to nearest, ties to even."""
    if exact == 0:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    last_place = max(exponent - digits + 1, SMALLEST_EXPONENT + DIGITS - digits)
    steps = round(exact / Fraction(2) ** last_place)  # round() of a Fraction: ties to even
    return float(steps * Fraction(2) ** last_place)


def float32(values: list[float]) -> tuple[bytes, list[float]]:
    """Return the encoded bytes and what they decode to."""
    return b"".join(struct.pack("<f", value) for value in values), values


def bfloat16(values: list[float]) -> tuple[bytes, list[float]]:
    """Return the encoded bytes and what they decode to."""
    decoded = []
    for value in values:
        short = rounded(Fraction(value), BFLOAT16_DIGITS)
        decoded.append(-0.0 if short == 0 and bits(value) >> 31 else short)
    return b"".join(struct.pack("<H", bits(value) >> 16) for value in decoded), decoded


def blockwise(values: list[float], largest: int) -> tuple[bytes, list[list[int]], list[float]]:
    """Return the bytes of the scales, each block's codes, and what they decode to."""
    scales, blocks, decoded = [], [], []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        scale = rounded(Fraction(max(abs(value) for value in block)) / largest, DIGITS)
        scales.append(scale)
        blocks.append([])
        for value in block:
            quotient = rounded(Fraction(value) / Fraction(scale or 1.0), DIGITS)
            code = max(-largest, min(largest, round(quotient)))  # round(): ties to even
            blocks[-1].append(code)
            decoded.append(rounded(code * Fraction(scale), DIGITS))
    return b"".join(struct.pack("<f", scale) for scale in scales), blocks, decoded


def int8(values: list[float]) -> tuple[bytes, list[float]]:
    """Return the encoded bytes and what they decode to."""
    data, blocks, decoded = blockwise(values, 127)
    for block in blocks:
        data += b"".join(struct.pack("<b", code) for code in block)
    return data, decoded


def int4(values: list[float]) -> tuple[bytes, list[float]]:
    """Return the encoded bytes and what they decode to."""
    data, blocks, decoded = blockwise(values, 7)
    for block in blocks:
        half = (len(block) + 1) // 2
        upper = [*block[half:], 0]  # the zero is used if the block's length is odd
        data += bytes((block[j] & 15) + 16 * (upper[j] & 15) for j in range(half))
    return data, decoded


def topk(values: list[float]) -> tuple[bytes, list[float]]:
    """Return the encoded bytes and what they decode to."""
    magnitudes, codes, places, decoded = b"", "", "", [0.0] * len(values)
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        sent = -(-len(chunk) // 64)
        taken = sorted(sorted(range(len(chunk)), key=lambda i: (-abs(chunk[i]), i))[:sent])
        sizes = {i: rounded(Fraction(abs(chunk[i])), BFLOAT16_DIGITS) for i in taken}
        low, high = two_levels(sorted(sizes.values()))
        middle = rounded((Fraction(low) + Fraction(high)) / 2, DIGITS)
        magnitudes += struct.pack("<HH", bits(low) >> 16, bits(high) >> 16)
        for i in taken:
            is_high = low < high and sizes[i] > middle
            level = high if is_high else low
            is_negative = chunk[i] < 0 and level > 0
            codes = f"{is_negative:b}{is_high:b}" + codes  # the first in the lowest bits
            places = f"{i:012b}" + places
            decoded[start + i] = -level if is_negative else level
    return magnitudes + from_binary(codes) + from_binary(places), decoded


def two_levels(ordered: list[float]) -> tuple[float, float]:
    """Return low and high of a chunk, whose sent magnitudes are given in ascending order."""
    nonzero = [size for size in ordered if size > 0]
    if not nonzero:
        return 0.0, 0.0
    low = ordered[7 * len(ordered) // 16] if len(nonzero) == len(ordered) else 0.0
    return low, nonzero[15 * len(nonzero) // 16]


def from_binary(digits: str) -> bytes:
    """Return a number's bytes, the lowest first, as many as its digits need."""
    return int(digits, 2).to_bytes((len(digits) + 7) // 8, "little")


def add(left: list[float], right: list[float], *, sign: int = 1) -> list[float]:
    """Return left + sign * right, each rounded to float32."""
    pairs = zip(left, right, strict=True)
    return [rounded(Fraction(x) + sign * Fraction(y), DIGITS) for x, y in pairs]


def noise(count: int, scale: float, *, seed: int = 42) -> list[float]:
    """Return pseudo-random float32 values in (-scale, scale), by Knuth's MMIX generator."""
    state, values = seed, []
    for _ in range(count):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        unit = Fraction(state >> 32, 2**31) - 1
        values.append(rounded(unit * Fraction(scale), DIGITS))
    return values


CASES: dict[str, list[float]] = {
    "one element": [1.0],
    "simple": [0.0, 1.0, -1.0, 0.5, -0.25, 127.0, -127.0, 3.0],
    "all zero, two blocks": [0.0] * 257,
    "negative zero": [-0.0, 1.0],
    "ties of bfloat16": [from_bits(p) for p in (0x3F808000, 0x3F818000, 0xBF808001, 0x3F807FFF)],
    "ties of int8": [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5],
    "subnormals": [from_bits(p) for p in (0x00000001, 0x80000001, 0x007FFFFF, 0x00400000)],
    "tiniest alone": [from_bits(1)] * 3,
    "subnormal scale": [from_bits(p) for p in (178, 64, 63, 1)],
    "carries into the exponent": [from_bits(p) for p in (0x3FFFFFFF, 0x3F7FFFFF)],
    "large": [1e30, -2.5e30, 1.0, 3e28],
    "zero block between others": [*noise(256, 1.0), *[0.0] * 256, *noise(256, 1e-3)],
    "short last block": noise(300, 0.01),
    "exactly two blocks": noise(512, 1e-6),
}

NEARLY_EMPTY = [0.0] * CHUNK
for place, value in zip(range(5, CHUNK, 230), noise(18, 1.0), strict=True):
    NEARLY_EMPTY[place] = value

TOPK_CASES: dict[str, list[float]] = {
    "a chunk and a short one": noise(CHUNK + 300, 0.01),
    "a nearly empty chunk, then ties": [*NEARLY_EMPTY, *map(float, map(round, noise(700, 3.0)))],
}

STEPS: dict[str, tuple[list[float], list[float], list[float] | None]] = {
    "nothing changes": (noise(5, 1.0), noise(5, 1.0), None),
    "from the exact state": (noise(300, 1.0), add(noise(300, 1.0), noise(300, 0.01, seed=7)), None),
    "with a residual": (
        noise(300, 1.0),
        add(noise(300, 1.0), noise(300, 0.01, seed=7)),
        noise(300, 1e-4, seed=8),
    ),
    "smaller than the last place": (noise(9, 100.0), noise(9, 100.0), noise(9, 1e-7, seed=9)),
}


def words(values: list[float]) -> str:
    """Return the patterns of float32 values in hexadecimal."""
    return " ".join(f"{bits(value):08x}" for value in values)


def golden_codecs() -> list[dict[str, object]]:
    """Return every case in every codec; those with whole chunks in `topk` only."""
    vectors = []
    for name, given in (CASES | TOPK_CASES).items():
        values = [from_bits(bits(value)) for value in given]
        encoded = {}
        for codec in (topk,) if name in TOPK_CASES else (float32, bfloat16, int8, int4, topk):
            data, decoded = codec(values)
            encoded[codec.__name__] = {"bytes": data.hex(), "decoded": words(decoded)}
        vectors.append({"name": name, "values": words(values), "encoded": encoded})
    return vectors


def golden_steps() -> list[dict[str, object]]:
    """Return every downlink step."""
    vectors = []
    for name, (held, exact, residual) in STEPS.items():
        target = exact if residual is None else add(exact, residual)
        given = {"held": words(held), "exact": words(exact)}
        if residual is not None:
            given["residual"] = words(residual)
        for codec in (int8, int4):
            data, decoded = codec(add(target, held, sign=-1))
            stepped = add(held, decoded)
            left = add(target, stepped, sign=-1)
            step = {"bytes": data.hex(), "held": words(stepped), "residual": words(left)}
            vectors.append(
                {"name": name, "codec": f"delta-{codec.__name__}", **given, "step": step}
            )
    return vectors


def main() -> None:
    """Write the files next to this program."""
    for name, vectors in (("codecs", golden_codecs()), ("downlink", golden_steps())):
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(vectors, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
