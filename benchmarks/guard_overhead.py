"""What the guard's look at a contribution costs, beside encoding it without a look.

Two processes, as on a node: one encodes a pseudo-gradient fragment by fragment into the spool, the
other takes each fragment from there. With the guard it decodes it, looks at values and norm, and
signs; without, it only hashes it, which sending needs anyway. Uploading comes after both and takes
the same time in both, so that the ratio with an upload is nearer to 1 than this one.

    python benchmarks/guard_overhead.py --parameters 100e6 --codec int8
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from running import median, save

from tapestry.checkpoints.statements import InnerSettings, RoundPlan
from tapestry.params.codecs import codec_named
from tapestry.params.layout import ParameterLayout
from tapestry_node.guard import sealed
from tapestry_node.home import NodeHome
from tapestry_node.messages import Line, Made
from tapestry_node.policy import Policy
from tapestry_node.spool import spooling


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1 and sys.argv[1] == "--encode":
        encode(Line(socket.socket(fileno=int(sys.argv[2]))), int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Take turns, and print seconds and the ratio."""
    layout = ParameterLayout.from_shapes([("weight", (int(args.parameters),))])
    plan = plan_for(layout, args.codec)
    home = NodeHome(folder)
    home.make_folders()
    ours, theirs = socket.socketpair()
    child = subprocess.Popen(
        [sys.executable, __file__, "--encode", str(theirs.fileno()), str(layout.elements),
         args.codec],
        pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    line = Line(ours)
    line.receive()
    seconds: dict[str, list[float]] = {"plain": [], "guard": []}
    for _run in range(args.runs + 1):
        seconds["plain"].append(plain_seconds(home, plan, line, layout))
        seconds["guard"].append(guard_seconds(home, plan, line, layout))
    line.close()
    child.wait()
    pairs = zip(seconds["guard"][1:], seconds["plain"][1:], strict=True)  # first: warm-up
    ratios = [guard / plain for guard, plain in pairs]
    print(f"{layout.elements:,} parameters, {args.codec}, {args.runs} runs of each")
    for name, values in seconds.items():
        print(f"  {name:<6} {median(values[1:]):8.2f} s")
    print(f"  guard / plain: {median(ratios):.3f} (median of pairs; 1.15 is allowed)")
    save(f"guard_overhead_{args.codec}", {"seconds": seconds, "ratio": median(ratios)})


def plain_seconds(home: NodeHome, plan: RoundPlan, line: Line, layout: ParameterLayout) -> float:
    """Return the time of encoding and hashing."""
    codec = codec_named(plan.codec)
    began = time.perf_counter()
    with spooling(home.spool(1), home.spare_spools) as fragments:
        line.send("write", file=str(fragments.path))
        for index in range(layout.fragments):
            line.receive()
            start, stop = layout.bounds(index)
            fragments.take(codec.encoded_bytes(stop - start))
    return time.perf_counter() - began


def guard_seconds(home: NodeHome, plan: RoundPlan, line: Line, layout: ParameterLayout) -> float:
    """Return the time of encoding, the guard's look, and its signature."""

    def write(file: Path, look: object) -> Made:
        line.send("write", file=str(file))
        for _fragment in range(layout.fragments):
            look(line.receive()["index"])  # type: ignore[operator]
        return Made(tokens=1, steps=1, documents=1, loss_first=2.0, loss_last=1.0)

    began = time.perf_counter()
    sealed(
        home,
        plan,
        write,
        layout=layout,
        policy=Policy(),
        member_id="bench",
        key=Ed25519PrivateKey.from_private_bytes(b"\x07" * 32),
        seconds=1.0,
    )
    return time.perf_counter() - began


def encode(line: Line, elements: int, codec_name: str) -> None:
    """Encode random numbers whenever asked, as a trainer's process does."""
    codec = codec_named(codec_name)
    layout = ParameterLayout.from_shapes([("weight", (elements,))])
    vector = np.random.default_rng(0).standard_normal(elements, np.float32) * np.float32(1e-3)
    base = np.random.default_rng(1).standard_normal(elements, np.float32)
    line.send("ready")
    try:
        while True:
            with Path(line.receive()["file"]).open("r+b", buffering=0) as out:
                for index in range(layout.fragments):
                    start, stop = layout.bounds(index)
                    out.write(codec.encode(base[start:stop] - vector[start:stop]))
                    line.send("fragment", index=index)
    except EOFError:
        return


def plan_for(layout: ParameterLayout, codec: str) -> RoundPlan:
    """Return a plan of a first round."""
    return RoundPlan(
        genesis="0" * 64,
        round=1,
        attempt=1,
        base="0" * 64,
        layout=layout.digest,
        policy="0" * 64,
        cohort=("bench",),
        quorum=2,
        grace_seconds=0.0,
        deadline=1e12,
        objective="causal-lm",
        inner=InnerSettings(
            steps=1, sequences=1, sequence_tokens=8, learning_rate=1e-3, warmup_steps=0
        ),
        codec=codec,
        max_element=10.0,
        seed=0,
    )


if __name__ == "__main__":
    main()
