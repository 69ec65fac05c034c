"""How much memory does a coordinator take for the past when it publishes a round?

It writes the lineage from genesis on, and a card that adds up who trained; with and without what
members measured in all those rounds. Python's own count of what was allocated at most meanwhile:
the same on every machine, however busy.

    python benchmarks/history_memory.py --members 100 --rounds 50 150 300
"""

import argparse
import json
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from filled_history import fill, found_bench

from tapestry.checkpoints.folder import write_statements
from tapestry_coordinator import described
from tapestry_coordinator.card import write_card
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.testimony import StoredEvaluation


def main() -> None:
    """Fill histories, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--rounds", type=int, nargs="+", default=[50, 150, 300])
    arguments = parser.parse_args()
    for rounds in arguments.rounds:
        with tempfile.TemporaryDirectory(prefix="tapestry-history-") as work:
            home = found_bench(Path(work) / "coordinator")
            now = time.time()  # noqa: TID251 - the edge that owns the clock
            fill(home, rounds=rounds, members_count=arguments.members, now=now)
            figures = measure(home, Path(work) / "checkpoint")
        print(json.dumps({"rounds": rounds, "members": arguments.members, **figures}), flush=True)


def measure(home: CoordinatorHome, folder: Path) -> dict[str, int]:
    """Return the most bytes that were allocated at once for each of a round's writings."""
    shutil.copytree(home.checkpoint(0), folder)
    with closing(Registry(database_url(home))) as registry:

        def card(evaluations: Sequence[StoredEvaluation]) -> None:
            key, notes = home.load_signing_key(), home.notes(0)
            write_card(folder, registry.lineage(), evaluations, key, notes=notes)

        card([])  # imports, and what is compiled once
        card_after_start = most_bytes(lambda: (described._added_up.clear(), card([])))  # noqa: SLF001
        return {
            "lineage_bytes": most_bytes(lambda: write_statements(folder, registry.lineage())),
            "card_bytes": most_bytes(lambda: card([])),
            "card_after_a_start_bytes": card_after_start,
            "measurements_bytes": most_bytes(registry.evaluations),
        }


def most_bytes(act: Callable[[], object]) -> int:
    """Return by how much `act` raised what is allocated, at its highest."""
    tracemalloc.start()
    before, _peak = tracemalloc.get_traced_memory()
    act()
    _after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


if __name__ == "__main__":
    main()
