"""Folders for live federations, whose processes end with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestry_demo.federation import Processes, free_port_pair
from tests.e2e.live import Live
from tests.e2e.several_coordinators import Shared, two_folders
from tests.forking import Forks
from tests.servers import Postgres, Store, running_store


@pytest.fixture
def live(tmp_path: Path, forks: Forks) -> Iterator[Live]:
    """A folder for a federation whose processes end with the test."""
    with Processes(tmp_path / "logs") as processes:
        yield Live(tmp_path, processes, free_port_pair(), forks)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A store of blobs that speaks S3."""
    with running_store() as one:
        yield one


@pytest.fixture
def shared(tmp_path: Path, forks: Forks, postgres: Postgres, store: Store) -> Iterator[Shared]:
    """A federation with two coordinators that are not started yet."""
    with two_folders(tmp_path, forks, postgres, store) as one:
        yield one
