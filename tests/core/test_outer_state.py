"""The outer optimizer's state on disk."""

import io
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.outer_state import OuterStateFile, OuterStateWriter
from tapestry.errors import UnavailableError, UntrustedError
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout

LAYOUT = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + 5,))])


def fragments(vectors: int) -> list[tuple[Float32Array, ...]]:
    rng = np.random.default_rng(vectors)
    sizes = [FRAGMENT_ELEMENTS, 5]
    return [tuple(rng.standard_normal(size, np.float32) for _ in range(vectors)) for size in sizes]


def written(path: Path, vectors: int) -> bytes | None:
    with path.open("wb") as file:
        writer = OuterStateWriter(file)
        for state in fragments(vectors):
            writer.write(state)
        return writer.finish()


@pytest.mark.parametrize("vectors", [1, 2])
def test_what_was_written_is_read(tmp_path: Path, vectors: int) -> None:
    written(tmp_path / "state", vectors)
    state = OuterStateFile(tmp_path / "state", LAYOUT, vectors)
    for index, expected in enumerate(fragments(vectors)):
        found = state.read_fragment(index)
        assert [f.tobytes() for f in found] == [e.tobytes() for e in expected]
        assert all(f.flags.writeable for f in found)


def test_one_vector_is_stored_as_it_is(tmp_path: Path) -> None:
    root = written(tmp_path / "state", 1)
    whole = np.concatenate([state[0] for state in fragments(1)])
    assert (tmp_path / "state").read_bytes() == whole.tobytes()
    digests = [fragment_digest(state[0].tobytes()) for state in fragments(1)]
    assert root == fragments_root(digests)


def test_no_state_has_no_root() -> None:
    writer = OuterStateWriter(io.BytesIO())
    writer.write(())
    assert writer.finish() is None


def test_a_missing_state_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="state is missing; restore it from a backup"):
        OuterStateFile(tmp_path / "state", LAYOUT, 1)


def test_a_state_of_another_optimizer_is_not_taken(tmp_path: Path) -> None:
    written(tmp_path / "state", 1)
    with pytest.raises(UnavailableError, match=r"4,194,324 bytes instead of 8,388,648"):
        OuterStateFile(tmp_path / "state", LAYOUT, 2)


def test_a_state_that_is_cut_off_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    written(tmp_path / "state", 1)
    state = OuterStateFile(tmp_path / "state", LAYOUT, 1)
    with (tmp_path / "state").open("r+b") as file:
        file.truncate(4 * FRAGMENT_ELEMENTS)
    with pytest.raises(UntrustedError, match="ends before element"):
        state.read_fragment(1)
