"""What the guard's look at a contribution costs, on the way from its vector to its receipt.

Two processes, as on a node: one encodes a pseudo-gradient fragment by fragment into the spool, the
other takes each fragment from there and sends the whole to a coordinator over mutual TLS on
loopback. In every second round the guard decodes each fragment and looks at values and norm; in the
others it only hashes it, which sending needs anyway. Rounds are real ones, of one member: what the
coordinator does in between is not counted. The first two are left out.

    python benchmarks/guard_overhead.py --parameters 100e6 --codec int8
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from round_trip import found_vector, join
from rounds import Workload
from running import median, save

from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.wire.egress import EgressLedger
from tapestry_coordinator.home import CoordinatorHome
from tapestry_demo.federation import Processes, tapestry_command, wait_for_port
from tapestry_node.client import NodeClient
from tapestry_node.guard import sealed
from tapestry_node.home import NodeHome
from tapestry_node.messages import Line, Made, SocketLine
from tapestry_node.policy import Policy
from tapestry_node.spool import Spooled, spooling

_MEMBER = "bench"


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1 and sys.argv[1] == "--encode":
        encode(SocketLine(socket.socket(fileno=int(sys.argv[2]))), int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Serve a federation of one member, and take turns."""
    home = CoordinatorHome(folder / "coordinator")
    rounds = 2 * args.runs + 2
    work = Workload(parameters=int(args.parameters), nodes=1, rounds=rounds)
    found_vector(home, work, codec=args.codec, downlink="float32")
    layout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
    with Processes(folder / "logs") as processes:
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=60)
        join(home, _MEMBER, folder)
        with closing(encoder(layout, args.codec)) as line:
            seconds = answered(NodeHome(folder / _MEMBER), line, layout)
    tell(seconds, layout, args)


def answered(home: NodeHome, line: Line, layout: ParameterLayout) -> dict[str, list[list[float]]]:
    """Answer every plan; return the seconds of encoding and of sending, by kind."""
    membership = home.identity.load()
    clock = time.time  # noqa: TID251 - the edge that owns the clock
    ledger = EgressLedger(home.egress, to=membership.address, clock=clock)
    client, key = NodeClient(membership, home.identity, ledger), home.identity.signing_key()
    seconds: dict[str, list[list[float]]] = {"plain": [], "guard": []}
    with closing(ledger), closing(client):
        last = 0
        for told in client.watch():
            if told.plan is not None:
                plan = RoundPlan.parsed(told.plan.payload, what="plan")
                if plan.round > last:
                    last = plan.round
                    kind, seal = (("plain", hashed), ("guard", looked_at))[plan.round % 2]
                    began = time.perf_counter()
                    spooled = seal(home, plan, line, layout, key)
                    encoded = time.perf_counter()
                    with spooled.becoming_durable():
                        client.upload(
                            spooled.contribution,
                            spooled.envelope,
                            spooled.digests,
                            spooled.read_fragment,
                        )
                    seconds[kind].append([encoded - began, time.perf_counter() - encoded])
                    spooled.remove(home.spare_spools)
            if told.is_finished:
                break
    return seconds


def tell(
    seconds: dict[str, list[list[float]]], layout: ParameterLayout, args: argparse.Namespace
) -> None:
    """Print and save; the first round of each kind was a warm-up."""
    counted = {kind: np.array(rows[1:]) for kind, rows in seconds.items()}
    totals = {kind: rows.sum(axis=1) for kind, rows in counted.items()}
    ratios = [float(ratio) for ratio in totals["guard"] / totals["plain"]]
    alone = [float(r) for r in counted["guard"][:, 0] / counted["plain"][:, 0]]
    print(f"{layout.elements:,} parameters, {args.codec}, {args.runs} rounds of each")
    for kind, rows in counted.items():
        encoding, sending = (median(list(column)) for column in rows.T)
        print(f"  {kind:<6} encode {encoding:6.2f} s, send {sending:6.2f} s")
    print(f"  guard / plain: {median(ratios):.3f} (median of pairs; 1.15 is allowed)")
    print(f"  of encoding alone: {median(alone):.3f}")
    save(
        f"guard_overhead_{args.codec}",
        {
            "seconds": seconds,
            "ratio": median(ratios),
            "ratios": ratios,
            "ratio_of_encoding": median(alone),
        },
    )


def encoder(layout: ParameterLayout, codec: str) -> Line:
    """Start the process that encodes; return the line to it."""
    ours, theirs = socket.socketpair()
    subprocess.Popen(
        [sys.executable, __file__, "--encode", str(theirs.fileno()), str(layout.elements), codec],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    line = SocketLine(ours)
    line.receive()
    return line


def hashed(
    home: NodeHome, plan: RoundPlan, line: Line, layout: ParameterLayout, key: Ed25519PrivateKey
) -> Spooled:
    """Take what is encoded and sign it, without a look."""
    codec, folder = codec_named(plan.codec), home.spool(plan.round)
    with spooling(folder, home.spare_spools) as fragments:
        line.send("write", file=str(fragments.path))
        for index in range(layout.fragments):
            line.receive()
            start, stop = layout.bounds(index)
            fragments.take(codec.encoded_bytes(stop - start))
    contribution = Contribution(
        genesis=plan.genesis,
        round=plan.round,
        base=plan.base,
        member_id=_MEMBER,
        codec=plan.codec,
        fragments=layout.fragments,
        root=fragments_root(fragments.digests).hex(),
        tokens=plan.inner.tokens,
        steps=plan.inner.steps,
        norm=1.0,
    )
    return Spooled.completed(
        folder, contribution, contribution.signed(key), fragments=fragments, layout=layout
    )


def looked_at(
    home: NodeHome, plan: RoundPlan, line: Line, layout: ParameterLayout, key: Ed25519PrivateKey
) -> Spooled:
    """Take what is encoded as a node's guard does."""

    def write(file: Path, look: object) -> Made:
        line.send("write", file=str(file))
        for _fragment in range(layout.fragments):
            look(line.receive()["index"])  # type: ignore[operator]
        tokens, steps = plan.inner.tokens, plan.inner.steps
        return Made(tokens=tokens, steps=steps, documents=1, loss_first=2.0, loss_last=1.0)

    return sealed(
        home, plan, write, layout=layout, policy=Policy(), member_id=_MEMBER, key=key, seconds=1.0
    )


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


if __name__ == "__main__":
    main()
