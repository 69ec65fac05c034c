"""Thousands of histories, each from a seed; a failure prints the seed that repeats it.

    TAPESTRY_SIMULATION_SEED=123 pytest tests/simulation -k modelled     one history again
    TAPESTRY_SIMULATION_HISTORIES=50000 pytest tests/simulation          many more, for a night
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.checker import differences, violations
from tests.simulation.history import History
from tests.simulation.runs import Run, troubled, undisturbed

SEED, HISTORIES = "TAPESTRY_SIMULATION_SEED", "TAPESTRY_SIMULATION_HISTORIES"
MODELLED = int(os.environ.get(HISTORIES, "2000"))
REAL = MODELLED // 50
PARTS = 20


def seeds(first: int, count: int, part: int) -> range:
    """The seeds of one part; just the one that was asked for, if one was."""
    asked = os.environ.get(SEED)
    if asked is not None:
        return range(int(asked), int(asked) + 1) if part == 0 else range(0)
    size = count // PARTS
    return range(first + part * size, first + (part + 1) * size)


def require_sound(history: History) -> None:
    wrong = violations(history)
    assert not wrong, "\n".join(
        [f"seed {history.seed}: {SEED}={history.seed} pytest tests/simulation", *map(str, wrong)]
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_modelled_histories_are_sound(part: int) -> None:
    for seed in seeds(0, MODELLED, part):
        require_sound(troubled(seed).play())


@pytest.mark.parametrize("part", range(PARTS))
def test_histories_over_real_files_are_sound(part: int, tmp_path: Path) -> None:
    for seed in seeds(1_000_000, REAL, part):
        require_sound(troubled(seed, tmp_path / str(seed)).play())
        shutil.rmtree(tmp_path / str(seed))
