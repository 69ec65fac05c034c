"""Seeded histories; a failure prints the seed that repeats it.

```
TAPESTRY_SIMULATION_SEED=123 pytest tests/simulation -k modelled     one history again
TAPESTRY_SIMULATION_HISTORIES=50000 pytest tests/simulation          many more, for a night
```
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tapestry.checkpoints.manifest import Manifest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.failpoints import MOMENTS
from tests.simulation.checker import differences, violations
from tests.simulation.folding import manifests
from tests.simulation.history import History
from tests.simulation.runs import troubled, undisturbed
from tests.simulation.terms import Tables

SEED, HISTORIES = "TAPESTRY_SIMULATION_SEED", "TAPESTRY_SIMULATION_HISTORIES"
MODELLED = int(os.environ.get(HISTORIES, "300"))
REAL = max(2, MODELLED // 100)
PARTS = 10
REACHED: Counter[str] = Counter()
"""Moments at which a process died, over all modelled histories."""


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Thousands of histories log a lot."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def seeds(first: int, count: int, part: int) -> range:
    """The seeds of one part; just the one that was asked for, if one was."""
    asked = os.environ.get(SEED)
    if asked is not None:
        return range(int(asked), int(asked) + 1) if part == 0 else range(0)
    return range(first + part * count // PARTS, first + (part + 1) * count // PARTS)


def rounds_of(history: History) -> Iterable[tuple[Manifest, Envelope]]:
    return manifests(history).values()


def require_sound(history: History) -> None:
    wrong = violations(history)
    again = f"seed {history.seed}: {SEED}={history.seed} pytest tests/simulation"
    assert not wrong, "\n".join([again, *map(str, wrong)])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_modelled_histories_are_sound(part: int) -> None:
    for seed in seeds(0, MODELLED, part):
        run = troubled(seed)
        require_sound(run.play())
        REACHED.update(run.coordinator.crashes)


@pytest.mark.slow
def test_the_modelled_histories_die_at_every_moment() -> None:
    if sum(REACHED.values()) < 1500:  # 1,000 histories give more
        pytest.skip("needs more histories: set TAPESTRY_SIMULATION_HISTORIES")
    # A modelled disk keeps every checkpoint.
    assert set(MOMENTS) - {*REACHED} <= {"checkpoint-retired"}


@pytest.mark.slow
def test_histories_over_real_files_are_sound(tmp_path: Path) -> None:
    for part in range(PARTS):
        for seed in seeds(1_000_000, REAL, part):
            require_sound(troubled(seed, tmp_path / str(seed)).play())
            shutil.rmtree(tmp_path / str(seed))


@pytest.mark.slow
def test_the_modelled_registry_leaves_the_records_of_the_real_one() -> None:
    for seed in range(1, 9):
        one, other = troubled(seed).play(), troubled(seed, has_database=True).play()
        require_sound(other)
        assert one.records == other.records, seed
        assert (one.told, one.acknowledged) == (other.told, other.acknowledged)


GATES: dict[str, Tables | None] = {
    "none": None,
    "gate": {
        "no_harm": {"action": "revert", "evaluation_seconds": 1e6},
        "lateness": {"max_staleness": 1},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_a_run_with_crashes_comes_to_what_a_run_without_comes_to(gate: str) -> None:
    crashes = 0
    calm = undisturbed(0, tables=GATES[gate]).play()
    require_sound(calm)
    reverted = [m.made is not None and m.made.reverted is not None for m, _e in rounds_of(calm)]
    assert any(reverted) == (gate == "gate")
    for seed in range(10):
        run = undisturbed(seed, crash=0.15, tables=GATES[gate])
        shaken = run.play()
        require_sound(shaken)
        assert len(shaken.records.manifests) == 1 + calm.target
        assert not differences(shaken.records.lineage, calm.records.lineage), seed
        crashes += sum(run.coordinator.crashes.values())
    assert crashes > 20


@pytest.mark.slow
def test_a_run_with_crashes_over_real_files_comes_to_the_same_bits(tmp_path: Path) -> None:
    gate = GATES["gate"]
    calm = undisturbed(1, tmp_path / "calm", tables=gate).play()
    shaken = undisturbed(1, tmp_path / "shaken", crash=0.15, tables=gate).play()
    for history in (calm, shaken):
        require_sound(history)
        assert len(history.records.manifests) == 1 + history.target
    assert not differences(shaken.records.lineage, calm.records.lineage)


def test_a_seed_gives_the_same_history_again() -> None:
    for seed in (3, 4):
        one, other = troubled(seed).play(), troubled(seed).play()
        assert one.records == other.records
        assert (one.told, one.acknowledged) == (other.told, other.acknowledged)
        assert one.outages == other.outages
