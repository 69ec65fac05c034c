"""Space is used again only when nobody can tell: not while somebody reads what was there."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapestry.storage.atomic import replacing
from tapestry.storage.spares import Spares


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    return Spares(tmp_path, "model")


def retired(spares: Spares, tmp_path: Path, content: bytes = b"old content") -> int:
    """Retire a file; return which one it is."""
    path = tmp_path / "old"
    path.write_bytes(content)
    inode = path.stat().st_ino
    spares.retire([path])
    assert not path.exists()
    return inode


def test_the_next_file_gets_the_space_of_the_last(spares: Spares, tmp_path: Path) -> None:
    inode, new = retired(spares, tmp_path), tmp_path / "new"
    assert spares.take(new, mode=0o600)
    assert (new.stat().st_ino, new.stat().st_mode & 0o777) == (inode, 0o600)
    assert not spares.take(tmp_path / "another")


def test_another_kind_is_left_alone(spares: Spares, tmp_path: Path) -> None:
    retired(spares, tmp_path)
    assert not Spares(tmp_path, "state").take(tmp_path / "new")
    assert Spares(tmp_path, "model").take(tmp_path / "new"), "also by another process"


def test_only_the_newest_generation_is_kept(spares: Spares, tmp_path: Path) -> None:
    first = retired(spares, tmp_path)
    second = retired(spares, tmp_path)
    assert len(list((tmp_path / ".spare").iterdir())) == 1
    assert spares.take(tmp_path / "new")
    assert (tmp_path / "new").stat().st_ino == second != first


def test_what_is_not_there_cannot_be_retired(spares: Spares, tmp_path: Path) -> None:
    spares.retire([tmp_path / "missing"])
    assert not spares.take(tmp_path / "new")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    with path.open("rb"):
        yield


@contextmanager
def mapping(path: Path) -> Iterator[None]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield
    mapped.close()


@contextmanager
def linking(path: Path) -> Iterator[None]:
    os.link(path, path.with_name("link"))
    yield


@pytest.mark.parametrize("using", [reading, mapping, linking])
def test_a_file_that_somebody_uses_is_removed_and_keeps_its_content(
    spares: Spares, tmp_path: Path, using: object
) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"what the reader reads")
    with path.open("rb") as reader, using(path):  # type: ignore[operator]
        if using is not reading:
            reader.close()
        spares.retire([path])
        assert not spares.take(tmp_path / "new")
        assert list((tmp_path / ".spare").iterdir()) == []
        if using is reading:
            assert reader.read() == b"what the reader reads"


def test_a_shorter_file_ends_where_it_was_written_to(spares: Spares, tmp_path: Path) -> None:
    inode = retired(spares, tmp_path, b"x" * 10_000)
    with replacing(tmp_path / "new", spares=spares) as file:
        file.write(b"short")
    assert (tmp_path / "new").read_bytes() == b"short"
    assert (tmp_path / "new").stat().st_ino == inode


def test_nothing_is_left_of_a_failed_write(spares: Spares, tmp_path: Path) -> None:
    retired(spares, tmp_path)
    with pytest.raises(RuntimeError), replacing(tmp_path / "new", spares=spares):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == [".spare"]
    assert not spares.take(tmp_path / "new")
