"""Many members at one coordinator: do all take part, does its memory stay flat, what does it cost?

The members only echo; everything between them and the coordinator is the product's own: an
invitation and a certificate each, mutual TLS, plans, fetching, uploads, receipts. They share a few
processes. First all are connected and idle, because the operator has paused the rounds; then the
rounds run.

    python benchmarks/many_members.py --members 100 --rounds 50
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from round_trip import HERE, found_vector
from rounds import Workload
from running import machine, median, save

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import RoundPlan
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.views import rounds_table
from tapestry_demo.federation import Processes, tapestry_command, wait_for_port
from tapestry_node.joining import join

_now = time.time  # noqa: TID251 - the edge that owns the clock
_CONNECT_SECONDS = 300.0
_ROUND_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """How many members, of what, and in how many processes."""

    members: int
    processes: int
    parameters: int
    rounds: int
    idle_seconds: float


def main() -> None:
    """Measure, print, save; with exit code 1 if a member was left out of a round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--parameters", type=float, default=20e3)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="write the figures here and not to results/")
    args = parser.parse_args()
    crowd = Crowd(
        members=args.members,
        processes=min(args.processes, args.members),
        parameters=int(args.parameters),
        rounds=args.rounds,
        idle_seconds=args.idle_seconds,
    )
    with tempfile.TemporaryDirectory(prefix="tapestry-crowd-") as work:
        results = measure(Path(work), crowd)
    if args.out is None:
        save(f"many_members_{crowd.members}", results)
    else:
        args.out.write_text(json.dumps({"machine": machine(), **results}), encoding="utf-8")
    print(json.dumps(results, indent=1))
    if results["left_out"]:
        sys.exit(1)


def measure(folder: Path, crowd: Crowd) -> dict[str, Any]:
    """Run the federation; return the figures."""
    home = CoordinatorHome(folder / "coordinator")
    workload = Workload(parameters=crowd.parameters, nodes=crowd.members, rounds=crowd.rounds)
    found_vector(home, workload, codec="int8", downlink="float32")
    table = home.load_settings()
    rounds = table.rounds.model_copy(
        update={"quorum": (crowd.members + 1) // 2, "gather_seconds": 600.0}
    )
    settings_module.save(home.folder, table.model_copy(update={"rounds": rounds}))
    registry = Registry(database_url(home))
    operator = Operator(home, registry)
    operator.pause("until all are here")
    with Processes(folder / "logs") as processes:
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=120)
        coordinator = psutil.Process(processes.running["coordinator"].pid)
        began = time.perf_counter()
        nodes = [folder / f"node-{number:03d}" for number in range(crowd.members)]
        for node in nodes:
            join(make_invitation(home, node.name, now=_now()), node, now=_now())
        joined = time.perf_counter() - began
        for number in range(crowd.processes):
            mine = map(str, nodes[number :: crowd.processes])
            processes.start(f"crowd-{number}", [sys.executable, str(HERE / "echo_node.py"), *mine])
        wait_until_connected(coordinator, home, crowd.members)
        print(f"{crowd.members} members are connected", flush=True)
        idle = idle_share(coordinator, crowd.idle_seconds)
        operator.resume()
        resident = resident_by_round(processes, coordinator, home, crowd)
        for number in range(crowd.processes):
            processes.running[f"crowd-{number}"].wait(120)
    result = {
        "members": crowd.members,
        "parameters": crowd.parameters,
        "join_seconds_each": joined / crowd.members,
        "idle_cpu_share": idle,
        "idle_seconds": crowd.idle_seconds,
        **resident,
        **took_part(home, registry, crowd),
    }
    registry.close()
    return result


def wait_until_connected(process: psutil.Process, home: CoordinatorHome, members: int) -> None:
    """Wait until so many connections to the members' port are there, and quiet."""
    port = int(home.load_settings().network.listen.rsplit(":", 1)[1])
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        connections = process.net_connections("tcp")
        here = sum(
            c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port for c in connections
        )
        if here >= members:
            break
        if time.monotonic() > deadline:
            sys.exit(f"{here} of {members} members connected in {_CONNECT_SECONDS:.0f} s")
        time.sleep(0.5)
    time.sleep(5.0)


def idle_share(process: psutil.Process, seconds: float) -> float:
    """Return what share of one core a process takes over so long a time."""
    before, began = process.cpu_times(), time.perf_counter()
    time.sleep(seconds)
    after, took = process.cpu_times(), time.perf_counter() - began
    return float(after.user + after.system - before.user - before.system) / took


def resident_by_round(
    processes: Processes, coordinator: psutil.Process, home: CoordinatorHome, crowd: Crowd
) -> dict[str, Any]:
    """Run all rounds; return the coordinator's memory after some of them, and its CPU time."""
    resident: dict[int, int] = {}
    cpu, began = coordinator.cpu_times(), time.perf_counter()
    for number in range(1, crowd.rounds + 1):
        deadline = time.monotonic() + _ROUND_SECONDS
        while not home.checkpoint(number).is_dir():
            for name in processes.running:
                processes.require_alive(name)
            if time.monotonic() > deadline:
                sys.exit(f"round {number} is not over after {_ROUND_SECONDS:.0f} s")
            time.sleep(0.05)
        resident[number] = coordinator.memory_info().rss
        if number % 10 == 0 or number == 1:
            print(f"round {number}: {resident[number]:,} bytes resident", flush=True)
    took, after = time.perf_counter() - began, coordinator.cpu_times()
    return {
        "rounds": crowd.rounds,
        "seconds_per_round": took / crowd.rounds,
        "coordinator_cpu_seconds_per_round": (after.user + after.system - cpu.user - cpu.system)
        / crowd.rounds,
        "resident_bytes": {n: b for n, b in resident.items() if n == 1 or n % 10 == 0},
    }


def took_part(home: CoordinatorHome, registry: Registry, crowd: Crowd) -> dict[str, Any]:
    """Return who was left out of a round it was in, and how long rounds were open."""
    left_out: dict[str, int] = {}
    cohorts = []
    for number in range(1, crowd.rounds + 1):
        envelope, plan = registry.manifest(number), registry.plan(number, 1)
        if envelope is None or plan is None:
            raise RuntimeError(f"round {number} was not published at its first attempt")
        made = Manifest.parsed(envelope.payload, what="manifest").made
        cohort = RoundPlan.parsed(plan.payload, what="plan").cohort
        cohorts.append(len(cohort))
        present = {part.member_id for part in made.participation} if made else set()
        for member_id in set(cohort) - present:
            left_out[member_id] = left_out.get(member_id, 0) + 1
    rows = rounds_table(home, registry, last=crowd.rounds + 1, now=_now())["rounds"]
    return {
        "smallest_cohort": min(cohorts),
        "largest_cohort": max(cohorts),
        "left_out": left_out,
        "open_seconds_median": median([row["seconds"] for row in rows if row["closed_at"]]),
    }


if __name__ == "__main__":
    main()
