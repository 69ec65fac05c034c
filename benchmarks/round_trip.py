"""Full rounds with nodes that only echo: time, bytes at the socket, CPU seconds, memory.

A round is: every node fetches the base checkpoint, adds noise, encodes, uploads; the coordinator
validates, aggregates and publishes. One coordinator and the nodes are processes of their own on
loopback, over mutual TLS. The first round also pays for start-up and is left out.

    python benchmarks/round_trip.py --parameters 100e6 --nodes 2 --codec float32
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from running import Meter, median, peak_bytes, save

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.params.codecs import codec_named
from tapestry.params.layout import ParameterLayout
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import Published
from tapestry_demo.federation import (
    Processes,
    call,
    free_port_pair,
    tapestry_command,
    wait_for_port,
)

HERE = Path(__file__).parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=10e6)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--codec", default="float32")
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="tapestry-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(
            folder,
            parameters=int(args.parameters),
            nodes=args.nodes,
            codec=args.codec,
            rounds=args.rounds,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(results)
    save(f"round_trip_{int(args.parameters)}_{args.nodes}_{args.codec}", results)


def measure(
    folder: Path, *, parameters: int, nodes: int, codec: str, rounds: int
) -> dict[str, Any]:
    """Run a federation of echo nodes; return what its rounds took."""
    home = CoordinatorHome(folder / "coordinator")
    found_vector(home, parameters=parameters, nodes=nodes, codec=codec, rounds=rounds)
    members = [f"node-{i}" for i in range(nodes)]
    with Processes(folder / "logs") as processes:
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=60)
        for member in members:
            invitation = folder / f"{member}.invitation"
            call("coordinator", "invite", member, "--dir", str(home.folder),
                 "--out", str(invitation))  # fmt: skip
            call("node", "join", str(invitation), "--dir", str(folder / member))
        for member in members:
            command = [sys.executable, str(HERE / "echo_node.py"), str(folder / member)]
            processes.start(member, command)
        pids = {name: process.pid for name, process in processes.running.items()}
        _wait_for_round(processes, home, 1)
        meter = Meter(list(pids.values()))
        _wait_for_round(processes, home, rounds)
        cost = meter.read()
        peaks = {name: peak_bytes(pid) for name, pid in pids.items()}
        for member in members:
            processes.running[member].wait(60)
    published = publication_times(home, rounds)
    seconds = [b - a for a, b in pairwise(published)]
    counted = rounds - 1
    payload = payload_bytes(home, codec, nodes)
    return {
        "parameters": parameters,
        "nodes": nodes,
        "codec": codec,
        "round_seconds": median(seconds),
        "all_round_seconds": seconds,
        "cpu_seconds_per_round": cost.cpu_seconds / counted,
        "payload_bytes_per_round": payload,
        "socket_bytes_per_round": cost.loopback_bytes / counted,
        "socket_over_payload": cost.loopback_bytes / counted / payload,
        "peak_bytes": peaks,
        "peak_bytes_sum": sum(peaks.values()),
    }


def found_vector(
    home: CoordinatorHome, *, parameters: int, nodes: int, codec: str, rounds: int
) -> None:
    """Found a federation over a bare vector, in a process of its own: it holds the model whole."""
    command = [sys.executable, str(HERE / "found_vector.py"), str(home.folder), str(parameters)]
    subprocess.run(command, check=True)
    port = free_port_pair()
    settings = home.load_settings()
    network = settings.network.model_copy(
        update={
            "listen": f"127.0.0.1:{port}",
            "enrolment_listen": f"127.0.0.1:{port + 1}",
            "address": f"localhost:{port}",
            "enrolment_address": f"localhost:{port + 1}",
        }
    )
    rounds_table = settings.rounds.model_copy(
        update={"quorum": nodes, "total": rounds, "gather_seconds": 60.0}
    )
    aggregation = settings.aggregation.model_copy(update={"codec": codec})
    keep = settings.keep.model_copy(update={"checkpoints": 2, "contribution_rounds": 1})
    changed = {
        "network": network,
        "rounds": rounds_table,
        "aggregation": aggregation,
        "keep": keep,
    }
    settings_module.save(home.folder, settings.model_copy(update=changed))


def _wait_for_round(processes: Processes, home: CoordinatorHome, number: int) -> None:
    while not home.checkpoint(number).is_dir():
        for name in processes.running:
            processes.require_alive(name)
        time.sleep(0.02)


def publication_times(home: CoordinatorHome, rounds: int) -> list[float]:
    """Return when each round was published, in Unix seconds."""
    registry = Registry(database_url(home.folder))
    times = []
    for number in range(1, rounds + 1):
        events = registry.round_events(number)
        times += [at for at, event in events if isinstance(event, Published)]
    registry.close()
    return times


def payload_bytes(home: CoordinatorHome, codec: str, nodes: int) -> int:
    """Return what a round must move: each node's encoded vector up and the checkpoint down."""
    envelope = read_envelope(home.checkpoint(0) / MANIFEST_FILE, what="manifest")
    elements = Manifest.parsed(envelope.payload, what="manifest").elements
    layout = ParameterLayout.from_shapes([("vector", (elements,))])
    encoded = 0
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        encoded += codec_named(codec).encoded_bytes(stop - start)
    return nodes * (encoded + 4 * elements)


def show(results: dict[str, Any]) -> None:
    """Print one measurement."""
    print(
        f"{results['parameters']:,} parameters, {results['nodes']} nodes, {results['codec']} up, "
        "float32 down, mutual TLS"
    )
    print(f"  round              {results['round_seconds']:.2f} s (median)")
    print(f"  CPU                {results['cpu_seconds_per_round']:.2f} s, all processes")
    print(
        f"  bytes at socket    {results['socket_bytes_per_round']:,.0f}, "
        f"{results['socket_over_payload']:.4f} x payload"
    )
    for name, peak in results["peak_bytes"].items():
        print(f"  peak of {name:<12} {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
