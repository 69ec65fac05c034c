"""Checkpoints down: broken downloads go on, wrong bytes are thrown away, equal files are kept."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tapestry.checkpoints.folder import CARD_FILE
from tapestry.checkpoints.manifest import FileEntry
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import RejectedError, UnavailableError, UntrustedError
from tapestry.storage.spares import Spares
from tapestry.wire.fetching import Fetcher
from tapestry.wire.limits import FETCH_CHUNK_BYTES
from tapestry_coordinator.card import write_card
from tapestry_coordinator.events import Published
from tapestry_coordinator.testimony import StoredEvaluation
from tests.wire.serving import Coordinator, Member

MODEL = "model.safetensors"


@pytest.fixture
def member(large: Coordinator) -> Member:
    return large.join("a")


@pytest.fixture
def fetcher(member: Member) -> Iterator[Fetcher]:
    with member.connected() as line:
        yield Fetcher(line.channel, "the coordinator")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return tmp_path / "parts"


def model_entry(coordinator: Coordinator, number: int = 0) -> FileEntry:
    manifest = verify_checkpoint(coordinator.home.checkpoint(number)).manifest
    (entry,) = [e for e in manifest.files if e.name == MODEL]
    return entry


def have(parts: Path, entry: FileEntry) -> int:
    """How much of a broken download is there."""
    return int((parts / f"{entry.digest}.have").read_text().split()[0])


def content(coordinator: Coordinator) -> bytes:
    return (coordinator.home.checkpoint(0) / MODEL).read_bytes()


def test_a_file_comes_whole_and_progress_adds_up(
    large: Coordinator, fetcher: Fetcher, parts: Path
) -> None:
    told: list[int] = []
    entry = model_entry(large)
    path = fetcher.fetch(entry, parts, on_bytes=told.append)
    assert path.read_bytes() == content(large)
    assert sum(told) == entry.size_bytes
    assert max(told) == FETCH_CHUNK_BYTES


@pytest.mark.parametrize("done", [1, 1_000_000, 3 * 2**20])
def test_a_download_goes_on_where_it_broke_off(
    large: Coordinator, fetcher: Fetcher, parts: Path, done: int
) -> None:
    entry, told = model_entry(large), []
    parts.mkdir()
    (parts / entry.digest).write_bytes(content(large)[:done])
    path = fetcher.fetch(entry, parts, on_bytes=told.append)
    assert path.read_bytes() == content(large)
    assert sum(told) == entry.size_bytes - done, "only the rest was sent"


def test_a_download_that_was_whole_asks_for_nothing(
    large: Coordinator, fetcher: Fetcher, parts: Path
) -> None:
    entry, told = model_entry(large), []
    fetcher.fetch(entry, parts)
    fetcher.fetch(entry, parts, on_bytes=told.append)
    assert told == []


class Unplugged(Exception):  # noqa: N818 - the test's own way to break a line
    pass


def test_a_line_that_breaks_in_the_middle_keeps_what_came(
    large: Coordinator, fetcher: Fetcher, parts: Path
) -> None:
    entry = model_entry(large)

    def unplug(_size: int) -> None:
        raise Unplugged

    with pytest.raises(Unplugged):
        fetcher.fetch(entry, parts, on_bytes=unplug)
    assert have(parts, entry) == FETCH_CHUNK_BYTES
    assert (parts / entry.digest).stat().st_size == entry.size_bytes, "its space is reserved"
    told: list[int] = []
    path = fetcher.fetch(entry, parts, on_bytes=told.append)
    assert path.read_bytes() == content(large)
    assert sum(told) == entry.size_bytes - FETCH_CHUNK_BYTES


def test_a_coordinator_that_stops_in_the_middle_is_unavailable_and_what_came_is_kept(
    large: Coordinator, fetcher: Fetcher, parts: Path
) -> None:
    # A file larger than what the connection holds in flight, published beside the others.
    big = large.home.folder / "big"
    big.write_bytes(os.urandom(2**20) * 32)
    (large.home.checkpoint(0) / "config.json").unlink()
    (large.home.checkpoint(0) / "config.json").symlink_to(big)
    name, size = "config.json", big.stat().st_size
    config = next(e for e in genesis_files(large) if e.name == name)
    entry = FileEntry(name=name, size_bytes=size, digest=config.digest)

    def stop(_size: int) -> None:
        large.stop(grace_seconds=0.0)

    with pytest.raises(UnavailableError, match="the coordinator"):
        fetcher.fetch(entry, parts, on_bytes=stop)
    assert FETCH_CHUNK_BYTES <= have(parts, entry) < size


def genesis_files(coordinator: Coordinator) -> tuple[FileEntry, ...]:
    """The files of genesis, as its manifest names them."""
    return coordinator.desk.genesis.newest.files


# Wrong bytes


@pytest.mark.parametrize("left", [b"x" * 1000, b"longer"], ids=["other bytes", "too long"])
def test_what_an_earlier_process_left_damaged_is_fetched_anew(
    large: Coordinator, fetcher: Fetcher, parts: Path, left: bytes
) -> None:
    entry = model_entry(large)
    parts.mkdir()
    damaged = content(large)[:-1] + left if left == b"longer" else left
    (parts / entry.digest).write_bytes(damaged)
    path = fetcher.fetch(entry, parts)
    assert path.read_bytes() == content(large)
    assert list(parts.iterdir()) == [path]


def test_a_download_takes_the_space_of_a_file_that_is_needed_no_more(
    large: Coordinator, fetcher: Fetcher, parts: Path, tmp_path: Path
) -> None:
    entry, spares = model_entry(large), Spares(tmp_path, "model")
    old = tmp_path / "old"
    old.write_bytes(os.urandom(entry.size_bytes + 5))
    inode = old.stat().st_ino
    spares.retire([old])
    path = fetcher.fetch(entry, parts, spares=spares)
    assert path.stat().st_ino == inode
    assert path.read_bytes() == content(large)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_size_that_the_file_has_not_is_refused(
    large: Coordinator, fetcher: Fetcher, parts: Path, change: int
) -> None:
    entry = model_entry(large)
    wrong = entry.model_copy(update={"size_bytes": entry.size_bytes + change})
    with pytest.raises(UntrustedError, match=r"model\.safetensors"):
        fetcher.fetch(wrong, parts)
    assert list(parts.iterdir()) == []


def test_a_coordinator_whose_disk_lies_is_found_out(
    large: Coordinator, fetcher: Fetcher, parts: Path
) -> None:
    entry = model_entry(large)
    path = large.home.checkpoint(0) / MODEL
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UntrustedError, match=r"model\.safetensors"):
        fetcher.fetch(entry, parts)
    assert list(parts.iterdir()) == []


def test_a_file_that_is_not_published_is_refused(fetcher: Fetcher, parts: Path) -> None:
    entry = FileEntry(name="x", size_bytes=1, digest=hashlib.sha256(b"x").hexdigest())
    with pytest.raises(RejectedError, match="no published file has the digest"):
        fetcher.fetch(entry, parts)


def test_an_empty_file_needs_no_bytes(fetcher: Fetcher, parts: Path) -> None:
    entry = FileEntry(name="empty", size_bytes=0, digest=hashlib.sha256(b"").hexdigest())
    assert fetcher.fetch(entry, parts).read_bytes() == b""


# Equal files


def test_an_equal_file_is_copied_and_not_fetched(
    large: Coordinator, fetcher: Fetcher, parts: Path, tmp_path: Path
) -> None:
    known, target = tmp_path / "round-000000", tmp_path / "new"
    shutil.copytree(large.home.checkpoint(0), known)
    target.mkdir()
    told: list[int] = []
    entries = verify_checkpoint(known).manifest.files
    fetcher.fetch_files(entries, target, parts=parts, known=[known], on_bytes=told.append)
    assert told == []
    for entry in entries:
        assert (target / entry.name).read_bytes() == (known / entry.name).read_bytes()


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_a_file_that_is_not_equal_is_fetched(
    large: Coordinator, fetcher: Fetcher, parts: Path, tmp_path: Path, damage: str
) -> None:
    known, target = tmp_path / "round-000000", tmp_path / "new"
    shutil.copytree(large.home.checkpoint(0), known)
    entries = verify_checkpoint(known).manifest.files
    path = known / MODEL
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if damage == "changed" else data[:-1])
    target.mkdir()
    told: list[int] = []
    fetcher.fetch_files(entries, target, parts=parts, known=[known], on_bytes=told.append)
    assert sum(told) == model_entry(large).size_bytes
    assert (target / MODEL).read_bytes() == content(large)


# Whole checkpoints


def test_a_checkpoint_is_pulled_whole_and_verified(
    large: Coordinator, fetcher: Fetcher, tmp_path: Path
) -> None:
    genesis = large.desk.genesis.genesis_digest
    pulled = fetcher.pull(tmp_path / "pulled", round_number=None, federation=genesis)
    assert pulled.manifest.round == 0
    ours, theirs = tmp_path / "pulled", large.home.checkpoint(0)
    names = sorted(p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fed", "pulled"], "nothing is left over"


def test_an_older_checkpoint_can_be_pulled_with_its_own_lineage(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    small = coordinator.small
    for _round in range(2):
        closed = small.closed({"a": [0.1, 0.1]})
        envelope = small.publisher.publish(closed)
        digest = payload_digest(envelope)
        coordinator.registry.record_event(
            closed.plan.round,
            Published(manifest=digest),
            now=1.0,
            manifest=(digest, envelope),
        )
    fresh = coordinator.restarted()
    with fresh.join("b").connected() as line:
        fetcher = Fetcher(line.channel, "the coordinator")
        genesis = fresh.desk.genesis.genesis_digest
        pulled = fetcher.pull(tmp_path / "one", round_number=1, federation=genesis)
        assert (pulled.manifest.round, pulled.lineage.newest.round) == (1, 1)
        newest = fetcher.pull(tmp_path / "two", round_number=None, federation=genesis)
        assert newest.manifest.round == 2
        with pytest.raises(RejectedError, match="there is no checkpoint 3: the newest is 2"):
            fetcher.pull(tmp_path / "three", round_number=3, federation=genesis)
    fresh.stop()


def test_another_federation_is_refused_and_nothing_is_made(
    large: Coordinator, fetcher: Fetcher, tmp_path: Path
) -> None:
    genesis = large.desk.genesis.genesis_digest
    for pin in ("0" * 64, genesis[:-1] + ("0" if genesis[-1] != "0" else "1"), genesis[:16]):
        with pytest.raises(UntrustedError, match="checkpoint of another federation: its genesis"):
            fetcher.pull(tmp_path / "pulled", round_number=None, federation=pin)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fed"]


def test_a_pull_that_breaks_off_goes_on_with_what_it_had(
    large: Coordinator, fetcher: Fetcher, tmp_path: Path
) -> None:
    genesis = large.desk.genesis.genesis_digest
    first: list[int] = []

    def unplug(size: int) -> None:
        first.append(size)
        if sum(first) > 2 * FETCH_CHUNK_BYTES:
            raise Unplugged

    with pytest.raises(Unplugged):
        fetcher.pull(tmp_path / "pulled", round_number=None, federation=genesis, on_bytes=unplug)
    assert not (tmp_path / "pulled").exists()
    told: list[int] = []
    fetcher.pull(tmp_path / "pulled", round_number=None, federation=genesis, on_bytes=told.append)
    size = model_entry(large).size_bytes
    small_files = sum(e.size_bytes for e in genesis_files(large)) - size
    assert sum(told) <= size + small_files - 2 * FETCH_CHUNK_BYTES
    verify_checkpoint(tmp_path / "pulled", federation=genesis)


def test_a_tampered_file_on_the_coordinators_disk_makes_no_checkpoint(
    large: Coordinator, fetcher: Fetcher, tmp_path: Path
) -> None:
    with (large.home.checkpoint(0) / "README.md").open("ab") as file:
        file.write(b"send your tokens to example.org")
    with pytest.raises(UntrustedError, match=r"README\.md"):
        fetcher.pull(
            tmp_path / "pulled",
            round_number=None,
            federation=large.desk.genesis.genesis_digest,
        )
    assert not (tmp_path / "pulled").exists()


def test_a_card_that_is_renewed_during_a_pull_is_taken_new(
    large: Coordinator, fetcher: Fetcher, tmp_path: Path
) -> None:
    folder, renewed = large.home.checkpoint(0), []

    def renew(_size: int) -> None:
        if not renewed:
            renewed.append(True)
            measured = StoredEvaluation(
                round=0, member_id="a", language="fr", bits_per_byte=2.5, held_out_bytes=4096
            )
            write_card(
                folder,
                large.registry.lineage(0),
                [measured],
                large.small.key,
                notes=large.home.notes(0),
            )
            large.desk.files.index(0)

    pulled = fetcher.pull(
        tmp_path / "pulled",
        round_number=None,
        federation=large.desk.genesis.genesis_digest,
        on_bytes=renew,
    )
    assert renewed
    assert [e.bits_per_byte for e in pulled.card.evaluations] == [2.5]
    assert (tmp_path / "pulled" / CARD_FILE).read_bytes() == (folder / CARD_FILE).read_bytes()


def test_two_members_pull_the_same_bytes(large: Coordinator, tmp_path: Path) -> None:
    genesis = large.desk.genesis.genesis_digest
    with ExitStack() as stack:
        for name in ("a", "b"):
            line = stack.enter_context(large.join(name).connected())
            Fetcher(line.channel, "the coordinator").pull(
                tmp_path / name, round_number=0, federation=genesis
            )
    first, second = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in ("a", "b")
    )
    assert first == second
