"""Where one machine ends: bytes, seconds and disk of a round, computed; core-seconds, measured.

Sizes follow from the codecs' own declarations. What receiving and combining cost is measured here,
on one core, on one fragment: SHA-256, decoding, the norm; then reading back, decoding, adding up.
Prints the tables of docs/scale.md.

    python benchmarks/scale.py
"""

import argparse
import hashlib
import time
from dataclasses import dataclass

import numpy as np
from running import machine, median

from tapestry.params.codecs import codec_named
from tapestry.params.deltas import squared_norm
from tapestry.params.layout import FRAGMENT_ELEMENTS

MODELS = {"1B": 10**9, "8B": 8 * 10**9, "70B": 70 * 10**9}
MEMBERS = (8, 32, 128)
UP = ("int8", "int4", "topk")
DOWN = ("float32", "bfloat16", "int8")
"""The last as quantised steps: `delta-int8`."""
GIGABIT = 125e6
ARCHIVED_ROUNDS = 10
CHECKPOINTS = 3
_TRIALS = 9


@dataclass(frozen=True, slots=True)
class Work:
    """Core-seconds for each element of a contribution."""

    receive: float
    combine: float


def encoded(codec: str, parameters: int) -> int:
    """Return the bytes of a whole encoded vector."""
    whole, rest = divmod(parameters, FRAGMENT_ELEMENTS)
    size = codec_named(codec).encoded_bytes
    return whole * size(FRAGMENT_ELEMENTS) + (size(rest) if rest else 0)


def measure(name: str) -> Work:
    """Measure one fragment of a codec, as the median of some trials."""
    codec = codec_named(name)
    rng = np.random.default_rng(1)
    data = codec.encode(rng.standard_normal(FRAGMENT_ELEMENTS, np.float32))
    values, total = (np.zeros(FRAGMENT_ELEMENTS, np.float32) for _ in range(2))
    received, combined = [], []
    for _ in range(_TRIALS):
        began = time.process_time()
        hashlib.sha256(data).digest()
        codec.decode_into(data, values)
        squared_norm(values)
        middle = time.process_time()
        hashlib.sha256(data).digest()
        codec.decode_into(data, values)
        np.multiply(values, np.float32(0.1), out=values)
        np.add(total, values, out=total)
        received.append(middle - began)
        combined.append(time.process_time() - middle)
    return Work(median(received) / FRAGMENT_ELEMENTS, median(combined) / FRAGMENT_ELEMENTS)


def size(count: float) -> str:
    """Return bytes for people, in powers of ten as networks and disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def seconds(count: float) -> str:
    """Return a duration for people."""
    if count < 120:
        return f"{count:.3g} s"
    return f"{count / 60:.3g} min" if count < 7200 else f"{count / 3600:.3g} h"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(head)} |")
    print(f"|{'---|' + '---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def per_member() -> None:
    """What one member moves in a round."""
    print("### One member, one round\n")
    head = ("model", *(f"up, {c}" for c in UP), *(f"down, {c}" for c in DOWN))
    rows = [
        (name, *(size(encoded(c, p)) for c in UP), *(size(encoded(c, p)) for c in DOWN))
        for name, p in MODELS.items()
    ]
    table(head, rows)


def lines(up: str, down: str) -> None:
    """What the coordinator's line carries, and for how long."""
    print(f"### The coordinator's line, one round: {up} up, {down} down\n")
    head = ("model, members", "in", "out", "at 1 Gbit/s", "at 10 Gbit/s")
    rows = []
    for name, parameters in MODELS.items():
        for members in MEMBERS:
            into = members * encoded(up, parameters)
            out = members * encoded(down, parameters)
            longest = into / GIGABIT + out / GIGABIT  # a member fetches before it sends
            times = (seconds(longest), seconds(longest / 10))
            rows.append((f"{name}, {members}", size(into), size(out), *times))
    table(head, rows)


def disks(up: str) -> None:
    """What lies on the coordinator's disk."""
    print(
        f"### The coordinator's disk: {CHECKPOINTS} checkpoints; outer states of Nesterov and "
        f"contributions in {up} of {ARCHIVED_ROUNDS} rounds and of the open one\n"
    )
    head = ("model, members", "checkpoints", "outer state", "contributions", "together")
    rows = []
    for name, parameters in MODELS.items():
        for members in MEMBERS:
            kept = (CHECKPOINTS + 2) * 4 * parameters  # and genesis, and the one being built
            state = (ARCHIVED_ROUNDS + 2) * 4 * parameters  # before each, and the newest
            contributions = (ARCHIVED_ROUNDS + 1) * members * encoded(up, parameters)
            sizes = (kept, state, contributions, kept + state + contributions)
            rows.append((f"{name}, {members}", *map(size, sizes)))
    table(head, rows)


def work() -> None:
    """What the coordinator's cores do."""
    measured = {codec: measure(codec) for codec in UP}
    print("### The coordinator's cores, one round, measured on one core and multiplied\n")
    head = ("model, members", *(f"{c}: core-seconds" for c in UP), "memory for fragments")
    rows = []
    for name, parameters in MODELS.items():
        for members in MEMBERS:
            costs = [
                seconds(members * parameters * (w.receive + w.combine)) for w in measured.values()
            ]
            memory = members * 4 * FRAGMENT_ELEMENTS
            rows.append((f"{name}, {members}", *costs, size(memory)))
    table(head, rows)
    for codec, one in measured.items():
        print(f"{codec}: receive {one.receive * 1e9:.2f} ns, combine {one.combine * 1e9:.2f} ns")
    about = machine()
    print(f"a parameter; {about['cpu']}, Python {about['python']}\n")


def main() -> None:
    """Print everything."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    per_member()
    lines("int8", "float32")
    lines("int8", "int8")
    lines("topk", "int8")
    disks("int8")
    work()


if __name__ == "__main__":
    main()
