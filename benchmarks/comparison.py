"""Systems beside each other: how many times ours the peers take, and the table."""

from collections.abc import Mapping
from typing import Any

OURS = "tapestry"
COMPARED = ("round_seconds", "cpu_seconds_per_round", "socket_bytes_per_round", "peak_bytes_sum")
_AT_REST = 0.1


def ratios(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return how many times ours each peer that ran takes."""
    return {
        name: {key: system[key] / systems[OURS][key] for key in COMPARED}
        for name, system in systems.items()
        if name != OURS and "error" not in system
    }


def show(results: Mapping[str, Any]) -> None:
    """Print one table of all systems, the memory of their processes, and what did not run."""
    print(
        f"{results['parameters']:,} parameters, {results['nodes']} nodes, "
        f"{results['rounds']} rounds "
        f"(the first not counted); ours {results['codec']} up, {results['downlink']} down"
    )
    if line := results["line"]:
        print(
            f"through one line of {line['bits_per_second'] / 1e6:g} Mbit/s each way, round trip "
            f"{line['round_trip_ms']:g} ms, which itself needs "
            f"{results['systems'][OURS]['line_seconds']:.1f} s (its own process is in the sums)"
        )
    print(f"{'a round':<28}{'seconds':>9}{'CPU s':>9}{'bytes':>16}{'/ payload':>11}{'peak MB':>9}")
    ran = {name: one for name, one in results["systems"].items() if "error" not in one}
    for name, one in ran.items():
        title = f"{name} {one['version']}, {one['security']}"
        print(
            f"{title:<28}{one['round_seconds']:>9.2f}{one['cpu_seconds_per_round']:>9.2f}"
            f"{one['socket_bytes_per_round']:>16,.0f}{one['socket_over_payload']:>11.3f}"
            f"{one['peak_bytes_sum'] / 1e6:>9,.0f}"
        )
        if ratio := results["ratios"].get(name):
            seconds, cpu, sent, peak = (ratio[key] for key in COMPARED)
            title = f"  times {OURS}"
            print(f"{title:<28}{seconds:>9.1f}{cpu:>9.1f}{sent:>16.2f}{'':>11}{peak:>9.1f}")
    if not results["private_network"]:
        print("the bytes are all of the machine's loopback: see benchmarks/private_network.py")
    for name, one in ran.items():
        if (others := one["other_cpu_seconds_per_round"]) > _AT_REST * one["round_seconds"]:
            print(f"not at rest: beside {name}, other programs used {others:.2f} CPU s a round")
    print("peak of a process, MB")
    for name, one in ran.items():
        print(f"  {name}: " + ", ".join(_processes(one)))
    for name, one in results["systems"].items():
        if "error" in one:
            print(f"{name} was not measured: {one['error']}")


def _processes(system: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, peak in system["peak_bytes"].items():
        count = system["processes"][name]
        times = f" ({count} of them)" if count > 1 else ""
        texts.append(f"{name}{times} {peak / 1e6:,.0f}")
    return texts
