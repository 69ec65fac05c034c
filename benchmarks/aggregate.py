"""Every aggregation rule against a memory copy of the same bytes, and the memory of a large round.

Speed counts what the rules consume: K contributions of P elements are K * P * 4 bytes of decoded
float32, divided by the core-seconds from encoded bytes in memory to the whole aggregate, both
passes of a rule of distances included, the outer step not. The copy is numpy.copyto between two
arrays of K fragments of float32, as often as there are fragments, in turns with the rules. All on
one thread, and in its CPU time: others on the machine still slow the memory down, but not the
clock. A ratio of 0.5 means that decoding and combining takes twice as long as copying what is
decoded would. The median of the runs counts; the last column has the slowest and the fastest.

    python benchmarks/aggregate.py                      # K = 8 and 32, every rule
    python benchmarks/aggregate.py --members 8 --rules mean trimmed-mean

With --large it writes a round to a temporary folder (uploads, base and outer state as files) and
takes the whole outer step in a fresh process, hashing and writing the new vector and state, and
prints that process's peak resident memory, mapped and cached file pages of its own included.
Where the disk is short of space, one upload is read in place of all, and the table says so.

    python benchmarks/aggregate.py --large --parameters 1e9 --members 8 --rules mean
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from running import median, save

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.pipeline import aggregate, decide, outer_step
from tapestry.aggregation.rules import RULE_NAMES, Rule, known_rule
from tapestry.checkpoints.outer_state import OuterStateFile, OuterStateWriter
from tapestry.checkpoints.vector_file import VectorWriter, open_vector_file
from tapestry.params.codecs import codec_named
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NESTEROV = OuterOptimizer(name="nesterov", learning_rate=0.8, momentum=0.9)
_WIDTH = 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", help="K; default: 8 32, or 8 if --large")
    parser.add_argument("--rules", nargs="+", help=f"of {', '.join(RULE_NAMES)}, mixing and rda")
    parser.add_argument("--codec", default="int8", help="how contributions are encoded")
    parser.add_argument("--fragments", type=int, default=4, help="of 2^20 elements each")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns; the median counts")
    parser.add_argument("--large", action="store_true", help="peak memory of a round on disk")
    parser.add_argument("--parameters", type=float, default=1e9, help="of the model, if --large")
    parser.add_argument("--folder", type=Path, help="where --large works; default: temporary")
    parser.add_argument("--step-in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # numpy reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)  # noqa: S606
    if args.step_in:
        step_in(args.step_in)
    elif args.large:
        large(args)
    else:
        compare(args)


def rules_for(members: int, names: list[str] | None) -> dict[str, Rule]:
    """Return the rules to measure, by the name in the table; f is a quarter of the members."""
    liars = members // 4
    table = {name: Rule(name=name, byzantine=liars) for name in RULE_NAMES}
    table["trimmed-mean + mixing"] = Rule(name="trimmed-mean", byzantine=liars, mixing=True)
    table["mean + rda"] = Rule(merge="rda")
    if names is None:
        return table
    short = {"mixing": "trimmed-mean + mixing", "rda": "mean + rda"}
    return {(full := short.get(name) or known_rule(name)): table[full] for name in names}


def compare(args: argparse.Namespace) -> None:
    """Run every rule and the copy in turns; print and save a table."""
    results: dict[str, Any] = {"codec": args.codec, "fragments": args.fragments, "members": {}}
    for members in args.members or (8, 32):
        rules = rules_for(members, args.rules)
        seconds = measure(members, rules, args)
        copied = median(seconds.pop("copy"))
        decoded_bytes = 4 * members * args.fragments * FRAGMENT_ELEMENTS
        print(f"\nK = {members}, {args.codec}: copy {decoded_bytes / copied / 1e9:.2f} GB/s")
        print(f"{'rule':<24}{'GB/s':>8}{'of copy':>9}{'ns an element':>15}{'min..max of copy':>20}")
        rows = {}
        for name, taken in seconds.items():
            row = {
                "gigabytes_per_second": decoded_bytes / median(taken) / 1e9,
                "of_copy": copied / median(taken),
                "nanoseconds": median(taken) / (decoded_bytes / 4) * 1e9,
                "of_copy_slowest": copied / max(taken),
                "of_copy_fastest": copied / min(taken),
            }
            rows[name] = row
            print(
                f"{name:<24}{row['gigabytes_per_second']:>8.2f}{row['of_copy']:>9.3f}"
                f"{row['nanoseconds']:>15.2f}"
                f"{row['of_copy_slowest']:>13.3f}..{row['of_copy_fastest']:.3f}"
            )
        results["members"][str(members)] = {
            "copy_gigabytes_per_second": decoded_bytes / copied / 1e9,
            "rules": rows,
        }
    save("aggregate", results)


def measure(
    members: int, rules: dict[str, Rule], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the core-seconds of every run, by rule; the first turn is not counted."""
    layout = layout_of(args.fragments * FRAGMENT_ELEMENTS)
    contributions = in_memory_contributions(members, args.codec, args.fragments)
    source = np.ones((members, FRAGMENT_ELEMENTS), np.float32)
    target = np.empty_like(source)

    def copy() -> None:
        for _ in range(args.fragments):
            np.copyto(target, source)

    def run(rule: Rule) -> Callable[[], None]:
        def combined() -> None:
            decided = decide(contributions, rule=rule, layout=layout)
            for _ in aggregate(decided, rule=rule, layout=layout):
                pass

        return combined

    turns = {"copy": copy} | {name: run(rule) for name, rule in rules.items()}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(args.runs + 1):
        for name, work in turns.items():
            begun = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return seconds


def layout_of(elements: int) -> ParameterLayout:
    """Return matrices of 4096 by 4096 and what is left."""
    shapes, left = [], elements
    while left > 0:
        rows = min(_WIDTH, max(left // _WIDTH, 1))
        columns = min(_WIDTH, left // rows)
        shapes.append((f"layers.{len(shapes):04}.weight", (rows, columns)))
        left -= rows * columns
    return ParameterLayout.from_shapes(shapes)


def in_memory_contributions(members: int, codec: str, fragments: int) -> list[WeightedContribution]:
    """Return contributions of which every fragment has the same bytes."""
    chosen, rng = codec_named(codec), np.random.default_rng(0)
    parts = []
    for number in range(members):
        values = rng.standard_normal(FRAGMENT_ELEMENTS, np.float32) * np.float32(1e-3)
        encoded = [chosen.encode(values)] * fragments
        parts.append(weighted(number, members, codec, encoded.__getitem__))
    return parts


def weighted(
    number: int, members: int, codec: str, read_fragment: Callable[[int], bytes]
) -> WeightedContribution:
    """Return a contribution; every second one is clipped."""
    return WeightedContribution(
        member_id=f"m{number:03}",
        weight=1 / members,
        clip_factor=0.9 if number % 2 else 1.0,
        codec=codec_named(codec),
        read_fragment=read_fragment,
    )


def large(args: argparse.Namespace) -> None:
    """Write a round, step in a fresh process, print its memory."""
    members = (args.members or [8])[0]
    folder = args.folder or Path(tempfile.mkdtemp(prefix="tapestry-aggregate-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        round_ = write_round(folder, members, int(args.parameters), args.codec)
        table = {}
        for name, rule in rules_for(members, args.rules or ["mean"]).items():
            fields = {"name": rule.name, "byzantine": rule.byzantine, "mixing": rule.mixing}
            (folder / "round.json").write_text(
                json.dumps(round_ | {"rule": fields | {"merge": rule.merge}})
            )
            done = subprocess.run(
                [sys.executable, __file__, "--step-in", str(folder)],
                capture_output=True,
                text=True,
                check=True,
            )
            table[name] = json.loads(done.stdout)
            print(
                f"{name}: {int(args.parameters):,} parameters, {members} {args.codec} uploads "
                f"({round_['uploads']} on disk): {table[name]['seconds']:.1f} s, peak resident "
                f"{table[name]['peak_bytes'] / 1e6:,.0f} MB"
            )
        save("aggregate-large", round_ | {"rules": table})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_round(folder: Path, members: int, parameters: int, codec: str) -> dict[str, Any]:
    """Write base, state and uploads; return what the fresh process must know."""
    layout, chosen = layout_of(parameters), codec_named(codec)
    start, stop = layout.bounds(layout.fragments - 1)
    upload = (layout.fragments - 1) * chosen.encoded_bytes(FRAGMENT_ELEMENTS)
    upload += chosen.encoded_bytes(stop - start)
    vectors = 4 * 4 * parameters  # base and state, before and after
    free = shutil.disk_usage(folder).free
    if free < 1.2 * (vectors + upload):
        raise SystemExit(f"{folder}: {free:,} bytes free, {vectors + upload:,} are needed")
    uploads = members if free > 1.2 * (vectors + members * upload) else 1
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(FRAGMENT_ELEMENTS, np.float32) * np.float32(1e-3)
    with (folder / "base").open("wb") as base, (folder / "state").open("wb") as state:
        writer, states = VectorWriter(base, layout, {}), OuterStateWriter(state)
        for index in range(layout.fragments):
            first, last = layout.bounds(index)
            writer.write(noise[: last - first])
            states.write((noise[: last - first],))
        writer.finish()
        states.finish()
    for number in range(uploads):
        encoded = chosen.encode(np.roll(noise, 1000 * number))
        with (folder / f"upload-{number}").open("wb") as file:
            for _ in range(layout.fragments - 1):
                file.write(encoded)
            file.write(chosen.encode(noise[: stop - start]))
    return {"members": members, "parameters": parameters, "codec": codec, "uploads": uploads}


def step_in(folder: Path) -> None:
    """Take the outer step over the round in `folder`; print seconds and peak memory as JSON."""
    round_ = json.loads((folder / "round.json").read_text())
    codec, rule = codec_named(round_["codec"]), Rule(**round_["rule"])
    base = open_vector_file(folder / "base")
    full = codec.encoded_bytes(FRAGMENT_ELEMENTS)
    parts = [
        weighted(
            number,
            round_["members"],
            round_["codec"],
            reader(folder / f"upload-{number % round_['uploads']}", full),
        )
        for number in range(round_["members"])
    ]
    begun = time.perf_counter()
    decided = decide(parts, rule=rule, layout=base.layout)
    state = OuterStateFile(folder / "state", base.layout, 1)
    with (folder / "new-base").open("wb") as new, (folder / "new-state").open("wb") as new_state:
        writer, states = VectorWriter(new, base.layout, {}), OuterStateWriter(new_state)
        for fragment in outer_step(
            base.read_fragment,
            state.read_fragment,
            decided,
            layout=base.layout,
            optimizer=NESTEROV,
            rule=rule,
        ):
            writer.write(fragment.base)
            states.write(fragment.state)
        states.finish()
        root = writer.finish().root.hex()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "root": root}))


def reader(path: Path, full_bytes: int) -> Callable[[int], bytes]:
    """Return what reads a fragment of the upload at `path`; the last is shorter."""

    def read(index: int) -> bytes:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), full_bytes, index * full_bytes)

    return read


if __name__ == "__main__":
    main()
