"""Full rounds with nodes that only echo: time, bytes at the socket, CPU seconds, memory.

A round is: every node fetches the base checkpoint, adds noise, encodes, uploads; the coordinator
validates, aggregates and publishes. One coordinator and the nodes are processes of their own on
loopback, over mutual TLS. The first round also pays for start-up and is left out.

    python benchmarks/round_trip.py --parameters 100e6 --nodes 2 --codec float32

With `--peer`, other frameworks then do the same rounds on the same machine, always in float32,
measured by the same meter (`make peers` installs them):

    python benchmarks/round_trip.py --parameters 100e6 --peer flower --peer flare

With `--line`, one slow line at the coordinator's end carries all that goes between it and the
nodes (each way, in bits per second); what has to pass it sets the least that a round can take:

    python benchmarks/round_trip.py --line 100e6 --round-trip-ms 100
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import private_network
from comparison import OURS, ratios, show
from descendants import adopt_orphans, end_all
from peers.flare import Flare
from peers.flower import Flower
from peers.peer import Peer, require_installed
from rounds import BenchmarkError, Workload, figures, measure_rounds
from running import save
from shaped_line import ShapedLine

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.policy import save_policy
from tapestry.params.codecs import codec_named
from tapestry.params.layout import ParameterLayout
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_demo.federation import (
    Processes,
    call,
    free_port_pair,
    tapestry_command,
    wait_for_port,
)

HERE = Path(__file__).parent
PEERS: dict[str, type[Peer]] = {"flower": Flower, "flare": Flare}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The line at the coordinator's end."""

    bits_per_second: float
    round_trip_ms: float


def main() -> None:
    """Measure, print and save; with exit code 1 if a peer did not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=10e6)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--codec", default="float32", help="of contributions, on their way up")
    parser.add_argument("--downlink", default="float32", help="how checkpoints come down")
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--peer", action="append", default=[], choices=sorted(PEERS))
    parser.add_argument("--line", type=float, metavar="BITS", help="per second each way, shared")
    parser.add_argument("--round-trip-ms", type=float, default=0.0, help="of that line")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: at least 2, because the first is not counted")
    if args.line and args.peer:
        parser.error("--line: not with --peer")
    for name in args.peer:
        try:
            require_installed(name)
        except BenchmarkError as error:
            parser.error(str(error))
    workload = Workload(parameters=int(args.parameters), nodes=args.nodes, rounds=args.rounds)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    adopt_orphans()
    shape = None
    if args.line:
        shape = Shape(bits_per_second=args.line, round_trip_ms=args.round_trip_ms)
    results = run(
        workload,
        codec=args.codec,
        downlink=args.downlink,
        shape=shape,
        peers=args.peer,
        folder=args.folder,
    )
    show(results)
    if any("error" in system for system in results["systems"].values()):
        sys.exit(1)


def run(
    workload: Workload,
    *,
    codec: str,
    downlink: str,
    shape: Shape | None,
    peers: Sequence[str],
    folder: Path | None,
) -> dict[str, Any]:
    """Measure ours and then the peers, one after the other; save what there is in any case."""
    systems: dict[str, Any] = {}
    results: dict[str, Any] = {
        "parameters": workload.parameters,
        "nodes": workload.nodes,
        "rounds": workload.rounds,
        "codec": codec,
        "downlink": downlink,
        "line": None if shape is None else asdict(shape),
        "private_network": private_network.enter(),
        "systems": systems,
    }
    try:
        with tempfile.TemporaryDirectory(prefix="tapestry-bench-", dir=folder) as work:
            systems[OURS] = measure(
                Path(work) / OURS, workload, codec=codec, downlink=downlink, shape=shape
            )
        for name in peers:
            with tempfile.TemporaryDirectory(prefix=f"{name}-bench-", dir=folder) as work:
                systems[name] = measure_peer(name, Path(work) / name, workload)
    finally:
        results["ratios"] = ratios(systems)
        if systems:
            name = f"round_trip_{workload.parameters}_{workload.nodes}_{codec}_{downlink}"
            save(name if shape is None else f"{name}_line", results)
    return results


def measure_peer(name: str, folder: Path, workload: Workload) -> dict[str, Any]:
    """Return a peer's figures, or why there are none."""
    try:
        return PEERS[name](folder).measure(workload)
    except BenchmarkError as error:
        return {"error": str(error)}


def measure(
    folder: Path, workload: Workload, *, codec: str, downlink: str, shape: Shape | None
) -> dict[str, Any]:
    """Run a federation of echo nodes; return what its rounds took."""
    home = CoordinatorHome(folder / "coordinator")
    nodes, rounds = workload.nodes, workload.rounds
    found_vector(home, workload, codec=codec, downlink=downlink)
    members = [f"node-{i}" for i in range(nodes)]
    try:
        with between(home, shape) as line, Processes(folder / "logs") as processes:
            processes.start(
                "coordinator", tapestry_command("coordinator", "serve", str(home.folder))
            )
            wait_for_port(processes, home, seconds=60)
            for member in members:
                join(home, member, folder)
            for member in members:
                command = [sys.executable, str(HERE / "echo_node.py"), str(folder / member)]
                processes.start(member, command)
            measured = measure_rounds(
                workload,
                lambda number: home.checkpoint(number).is_dir(),
                names={process.pid: name for name, process in processes.running.items()},
                require_alive=lambda: [*map(processes.require_alive, processes.running)],
            )
            for member in members:
                processes.running[member].wait(60)
            passed = None if line is None else sum(line.passed())
    finally:
        end_all()
    published = publication_times(home, rounds)
    up, down = payload_bytes(home, codec, downlink)
    result = figures(workload, measured, published, up_bytes=up, down_bytes=down)
    if shape is not None and passed is not None:  # on the loopback all of it is there twice
        payload = nodes * (up + down)
        result["line_seconds"] = 8 * payload / shape.bits_per_second
        result["socket_bytes_per_round"] = passed / rounds
        result["socket_over_payload"] = passed / rounds / payload
    return {"version": version("tapestry-fl"), "security": "mutual TLS", **result}


@contextmanager
def between(home: CoordinatorHome, shape: Shape | None) -> Iterator[ShapedLine | None]:
    """Put a line between a coordinator that does not run yet and the nodes that will join."""
    if shape is None:
        yield None
        return
    settings = home.load_settings()
    with ShapedLine(
        settings.network.listen,
        up_bytes_per_second=shape.bits_per_second / 8,
        down_bytes_per_second=shape.bits_per_second / 8,
        one_way_seconds=shape.round_trip_ms / 2000,
    ) as line:
        network = settings.network.model_copy(update={"address": line.address})
        settings_module.save(home.folder, settings.model_copy(update={"network": network}))
        yield line


def join(home: CoordinatorHome, member: str, folder: Path) -> None:
    """Invite a member and let it join."""
    invitation = folder / f"{member}.invitation"
    call("coordinator", "invite", member, "--dir", str(home.folder), "--out", str(invitation))
    call("node", "join", str(invitation), "--dir", str(folder / member))


def found_vector(home: CoordinatorHome, workload: Workload, *, codec: str, downlink: str) -> None:
    """Found a federation over a bare vector, in a process of its own: it holds the model whole."""
    command = [sys.executable, str(HERE / "found_vector.py"), str(home.folder)]
    command.append(str(workload.parameters))
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
        update={"quorum": workload.nodes, "total": workload.rounds, "gather_seconds": 60.0}
    )
    policy = home.load_policy()
    aggregation = policy.aggregation.model_copy(update={"codec": codec, "downlink": downlink})
    archive = policy.archive.model_copy(update={"rounds": 1})
    changed_policy = {"aggregation": aggregation, "archive": archive}
    save_policy(home.policy, policy.model_copy(update=changed_policy))
    keep = settings.keep.model_copy(update={"checkpoints": 2})
    changed = {
        "network": network,
        "rounds": rounds_table,
        "keep": keep,
        "page": settings.page.model_copy(update={"enabled": False}),
    }
    settings_module.save(home.folder, settings.model_copy(update=changed))


def publication_times(home: CoordinatorHome, rounds: int) -> list[float]:
    """Return when each round was published, in Unix seconds."""
    registry = Registry(database_url(home))
    times = []
    for number in range(1, rounds + 1):
        events = registry.round_events(number)
        times += [at for at, event in events if isinstance(event, Published)]
    registry.close()
    return times


def payload_bytes(home: CoordinatorHome, codec: str, downlink: str) -> tuple[int, int]:
    """Return what each node must move in a round: its encoded vector up, the checkpoint down."""
    envelope = read_envelope(home.checkpoint(0) / MANIFEST_FILE, what="manifest")
    elements = Manifest.parsed(envelope.payload, what="manifest").elements
    layout = ParameterLayout.from_shapes([("vector", (elements,))])
    bounds = [layout.bounds(index) for index in range(layout.fragments)]
    sizes = [stop - start for start, stop in bounds]
    up, down = codec_named(codec), codec_named(downlink.removeprefix("delta-"))
    return sum(map(up.encoded_bytes, sizes)), sum(map(down.encoded_bytes, sizes))


if __name__ == "__main__":
    main()
