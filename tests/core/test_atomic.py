"""Files and folders that are whole or not there."""

import os
from pathlib import Path

import pytest

from tapestry.checkpoints.folder import building
from tapestry.storage.atomic import (
    RollingSync,
    giving_up,
    remove_unfinished,
    replacing,
    write_atomic,
)


class PulledPlugError(Exception):
    """Ends a block in the middle."""


def test_the_name_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replacing(target) as file:
        file.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(PulledPlugError), replacing(target) as file:
        file.write(b"half of the ne")
        raise PulledPlugError
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(PulledPlugError), replacing(tmp_path / "file"):
        raise PulledPlugError
    assert [path.name for path in tmp_path.iterdir()] == []


def test_whoever_has_the_old_file_open_keeps_reading_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")
    with target.open("rb") as reader:
        write_atomic(target, b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replacing(target) as first, replacing(target) as second:
        first.write(b"first")
        second.write(b"second")
    assert target.read_bytes() == b"first"  # its block ends last
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_secrets_are_never_readable_by_others(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    with replacing(target, mode=0o600) as file:
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_mode & 0o777 == 0o600
        file.write(b"secret")
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_the_mode_is_set_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "file", b"", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "þráður")
    assert (tmp_path / "file").read_bytes() == "þráður".encode()


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "round-000001"
    with building(target) as folder:
        (folder / "tapestry").mkdir()
        (folder / "tapestry" / "manifest.json").write_text("{}")
        assert not target.exists()
    assert (target / "tapestry" / "manifest.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PulledPlugError), building(tmp_path / "round-000001") as folder:
        (folder / "file").write_text("half")
        raise PulledPlugError
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_a_crash_left_of_a_folder_is_not_taken_up(tmp_path: Path) -> None:
    target = tmp_path / "round-000001"
    with pytest.raises(PulledPlugError), building(target) as folder:
        left_over = folder
        raise PulledPlugError
    left_over.mkdir()  # as a killed process leaves it
    (left_over / "stray").write_text("half")
    with building(target) as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "round-000001"
    target.mkdir()
    (target / "file").write_text("published")
    with pytest.raises(OSError, match="not empty"), building(target) as folder:
        (folder / "file").write_text("other")
    assert (target / "file").read_text() == "published"


def test_a_file_that_is_made_durable_while_it_grows_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        sync = RollingSync(file, every_bytes=10)
        for number in range(20):
            file.write(bytes([number]) * 7)
            file.flush()
            sync.wrote(7)
        sync.close()
    assert path.read_bytes() == b"".join(bytes([number]) * 7 for number in range(20))


def test_a_folder_that_is_given_up_loses_its_name_before_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "round-000001"
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    with pytest.raises(PulledPlugError), giving_up(folder):
        assert not folder.exists()
        raise PulledPlugError
    (left,) = tmp_path.iterdir()
    assert (left / "card.json").is_file(), "a crash leaves all of it, under another name"
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_removed_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "round-000001"
    folder.mkdir()
    with giving_up(folder):
        pass
    assert not list(tmp_path.iterdir())


def test_only_what_was_begun_and_not_ended_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".round-000002.f32.1234abcd.part").write_bytes(b"half")
    (tmp_path / "round-000001.f32").write_bytes(b"whole")
    (tmp_path / ".lock").write_bytes(b"")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "round-000001.f32"]
