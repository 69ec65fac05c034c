"""A coordinator that listens, and ends with the test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry_coordinator.settings import RoundsSettings
from tests.coordinator.small import found_small
from tests.wire.serving import Coordinator

ROUNDS = RoundsSettings(quorum=2, gather_seconds=10.0, grace_seconds=300.0, deadline_seconds=3600.0)


@pytest.fixture
def coordinator(tmp_path: Path, registry_at: str) -> Iterator[Coordinator]:
    """A federation over a vector of two ones, in one short fragment."""
    serving = Coordinator(found_small(tmp_path / "fed", rounds=ROUNDS, database=registry_at))
    yield serving
    serving.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever is entered ends before the coordinator does."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Coordinator]:
    """A federation whose vector is one whole fragment and one of two elements."""
    serving = Coordinator(found_small(tmp_path / "fed", FRAGMENT_ELEMENTS + 2, rounds=ROUNDS))
    yield serving
    serving.stop()
