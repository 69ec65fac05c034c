"""A folder for a live federation, whose processes end with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestry_demo.federation import Processes, free_port_pair
from tests.e2e.live import Live
from tests.forking import Forks


@pytest.fixture
def live(tmp_path: Path, forks: Forks) -> Iterator[Live]:
    """A folder for a federation whose processes end with the test."""
    with Processes(tmp_path / "logs") as processes:
        yield Live(tmp_path, processes, free_port_pair(), forks)
