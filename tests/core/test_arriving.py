"""Files that arrive piece by piece, through breaks, crashes and power cuts."""

import os
from pathlib import Path

import pytest

from tapestry.storage import arriving
from tapestry.storage.arriving import ArrivingFile
from tapestry.storage.spares import Spares

DATA = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def arrived(path: Path, upto: int) -> None:
    """Receive the first bytes in a process that stops then."""
    with ArrivingFile(path, len(DATA)) as file:
        file.append(DATA[file.have : upto])


def complete(path: Path) -> bytes:
    """Receive the rest; return what was read back of the beginning."""
    with ArrivingFile(path, len(DATA)) as file:
        begun = file.read(len(DATA))
        file.append(DATA[file.have :])
        file.finish()
    return begun


def test_a_file_in_one_go(path: Path) -> None:
    assert complete(path) == b""
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]


def test_space_is_reserved_before_the_first_byte(path: Path) -> None:
    with ArrivingFile(path, len(DATA)) as file:
        assert file.have == 0
        assert path.stat().st_size == len(DATA)
        assert path.stat().st_blocks * 512 >= len(DATA)


@pytest.mark.parametrize("upto", [1, 4096, len(DATA) - 1, len(DATA)])
def test_what_came_is_there_for_the_next_process(path: Path, upto: int) -> None:
    arrived(path, upto)
    assert complete(path) == DATA[:upto]
    assert path.read_bytes() == DATA


def test_it_is_read_back_in_pieces(path: Path) -> None:
    arrived(path, 5000)
    with ArrivingFile(path, len(DATA)) as file:
        pieces = [file.read(2048) for _ in range(4)]
    assert [len(piece) for piece in pieces] == [2048, 2048, 904, 0]
    assert b"".join(pieces) == DATA[:5000]


def test_after_a_power_cut_only_what_was_synced_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(arriving, "_SYNC_BYTES", 1000)
    with ArrivingFile(path, len(DATA)) as file:
        file.append(DATA[:1500])
        file._sync._running.result()  # type: ignore[union-attr] # noqa: SLF001 - wait for the disk
        file.append(DATA[1500:1600])
    monkeypatch.setattr(arriving, "boot_id", lambda: "another boot")
    with ArrivingFile(path, len(DATA)) as file:
        assert file.have == 1500


def test_a_record_of_progress_that_is_damaged_is_not_believed(path: Path) -> None:
    arrived(path, 5000)
    (path.parent / "file.have").write_bytes(b"\0" * 30)
    with ArrivingFile(path, len(DATA)) as file:
        assert file.have == 0


def test_what_a_spare_holds_is_not_taken_for_progress(path: Path, tmp_path: Path) -> None:
    spares, old = Spares(tmp_path, "model"), tmp_path / "old"
    old.write_bytes(os.urandom(2 * len(DATA)))
    inode = old.stat().st_ino
    spares.retire([old])
    with ArrivingFile(path, len(DATA), spares=spares) as file:
        assert file.have == 0
        file.append(DATA[:100])
    assert path.stat().st_ino == inode
    assert complete(path) == DATA[:100]
    assert path.read_bytes() == DATA


def test_a_full_disk_is_told_before_the_first_byte(path: Path, tmp_path: Path) -> None:
    spares, old = Spares(tmp_path, "model"), tmp_path / "old"
    old.write_bytes(b"x")
    spares.retire([old])
    with pytest.raises(OSError, match=r"large|space"):
        ArrivingFile(path, 2**60, spares=spares)
    assert list((tmp_path / ".spare").iterdir()) == [], "what could be given back was"


def test_removing_leaves_nothing(path: Path) -> None:
    with ArrivingFile(path, len(DATA)) as file:
        file.append(DATA[:10])
        file.remove()
    assert list(path.parent.iterdir()) == []
