"""How fast each codec is, how small, and what it loses, beside a memory copy in the same run.

One thread. Rates are of the float32 side: 1 GB/s is 250 million elements a second. The best of
several repeats is reported, since a shared machine can only add time.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from running import cpu_name

from tapestry.params.codecs import CODECS, Codec, Float32Array
from tapestry.params.layout import FRAGMENT_ELEMENTS

RESULTS = Path(__file__).parent / "results" / "codecs.json"

EPILOG = """\
examples:
  python benchmarks/codecs.py                       a fragment of 2^20 elements, every codec
  python benchmarks/codecs.py --codec int8 int4     only these
  python benchmarks/codecs.py --repeats 100         longer, for a busy machine

The copy is numpy's from one float32 array to another of the same size: no codec can be faster.
"error" is |decoded - values| / |values| on normal values; for topk it is what one round leaves to
error feedback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One codec on one fragment."""

    codec: str
    bits_per_element: float
    relative_error: float
    encode_gb_per_second: float
    decode_gb_per_second: float
    """Into space that is given, as the coordinator decodes."""
    encode_copies: float
    """Time to encode, in times of the memory copy."""
    decode_copies: float


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest time that `work` took."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def measure(codec: Codec, values: Float32Array, *, copy_seconds: float, repeats: int) -> Measured:
    """Encode and decode `values` ([n] float32)."""
    data = codec.encode(values)
    decoded = np.empty_like(values)
    encode = best_seconds(lambda: codec.encode(values), repeats)
    decode = best_seconds(lambda: codec.decode_into(data, decoded), repeats)
    error = np.linalg.norm((decoded - values).astype(np.float64))
    return Measured(
        codec=codec.name,
        bits_per_element=8 * len(data) / len(values),
        relative_error=float(error / np.linalg.norm(values.astype(np.float64))),
        encode_gb_per_second=values.nbytes / encode / 1e9,
        decode_gb_per_second=values.nbytes / decode / 1e9,
        encode_copies=encode / copy_seconds,
        decode_copies=decode / copy_seconds,
    )


def show(rows: list[Measured], *, elements: int, copy_seconds: float) -> None:
    """Print the table."""
    rate = 4 * elements / copy_seconds / 1e9
    table = Table(title=f"{elements:,} elements; memory copy {rate:.1f} GB/s; one thread")
    for heading in ("codec", "bits", "error", "encode GB/s", "decode GB/s", "in copies"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for row in rows:
        table.add_row(
            row.codec,
            f"{row.bits_per_element:.4g}",
            f"{row.relative_error:.4f}",
            f"{row.encode_gb_per_second:.2f}",
            f"{row.decode_gb_per_second:.2f}",
            f"{row.encode_copies:.1f} / {row.decode_copies:.1f}",
        )
    Console().print(table)


def save(path: Path, rows: list[Measured], *, elements: int, copy_seconds: float) -> None:
    """Write the figures and where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "processor": cpu_name(),
        "numpy": np.__version__,
        "elements": elements,
        "copy_gb_per_second": 4 * elements / copy_seconds / 1e9,
        "codecs": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codec", nargs="+", choices=list(CODECS), default=list(CODECS))
    parser.add_argument(
        "--elements", type=int, default=FRAGMENT_ELEMENTS, help="default: one fragment, 2^20"
    )
    parser.add_argument("--repeats", type=int, default=30, help="the best counts; default: 30")
    parser.add_argument("--save", type=Path, default=RESULTS, help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    values = np.random.default_rng(0).standard_normal(options.elements, np.float32)
    other = np.empty_like(values)
    copy_seconds = best_seconds(lambda: np.copyto(other, values), options.repeats)
    rows = [
        measure(CODECS[name], values, copy_seconds=copy_seconds, repeats=options.repeats)
        for name in options.codec
    ]
    show(rows, elements=options.elements, copy_seconds=copy_seconds)
    save(options.save, rows, elements=options.elements, copy_seconds=copy_seconds)
    print(f"saved to {options.save}")


if __name__ == "__main__":
    main()
