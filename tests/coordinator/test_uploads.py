"""Contributions as they arrive, in real files.

The vector has 2^20 + 2 elements: fragment 0 is whole, fragment 1 has two elements.
"""

import errno
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tapestry.errors import RejectedError, UnavailableError
from tapestry.ledger.merkle import leaf_hash, node_hash
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.fragments import fragment_digest
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.small import forget_stores

# A store keeps the files of unfinished uploads open and cannot be closed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
let_go = pytest.fixture(scope="module", autouse=True)(forget_stores)

LAYOUT = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + 2,))])
CODEC = "float32"
MEMBER = "fr-bnf"
FULL_BYTES = 4 * FRAGMENT_ELEMENTS


def vector(*, scale: float = 1.0) -> Float32Array:
    """3 at the first element and 4 at the last: its norm is 5."""
    values = np.zeros(LAYOUT.elements, np.float32)
    values[0], values[-1] = 3.0 * scale, 4.0 * scale
    return values


def encoded(values: Float32Array, codec: str = CODEC) -> list[bytes]:
    chosen = codec_named(codec)
    return [chosen.encode(values[slice(*LAYOUT.bounds(i))]) for i in range(LAYOUT.fragments)]


def digests(fragments: list[bytes]) -> tuple[bytes, ...]:
    return tuple(map(fragment_digest, fragments))


FRAGMENTS = encoded(vector())
OTHERS = encoded(vector(scale=0.5))


@pytest.fixture
def store(tmp_path: Path) -> FragmentStore:
    return again(tmp_path)


def again(folder: Path) -> FragmentStore:
    """A store over the same folder, as after a restart."""
    return FragmentStore(folder, LAYOUT)


def opened(
    store: FragmentStore, fragments: list[bytes] = FRAGMENTS, *, codec: str = CODEC, round_: int = 1
) -> list[bool]:
    return store.open(round_, MEMBER, codec=codec, digests=digests(fragments), max_element=10.0)


def sent(store: FragmentStore, fragments: list[bytes] = FRAGMENTS, *, round_: int = 1) -> None:
    opened(store, fragments, round_=round_)
    for index, data in enumerate(fragments):
        store.put(round_, MEMBER, index=index, data=data)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# The way of a contribution


def test_a_contribution_comes_in_and_is_read_back(store: FragmentStore, tmp_path: Path) -> None:
    assert opened(store) == [True, True]
    store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    assert opened(store) == [True, False]
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    assert opened(store) == [False, False]
    root, norm = store.finish(1, MEMBER)
    assert norm == 5.0  # 3, 4, 5
    assert root == node_hash(*(leaf_hash(fragment_digest(data)) for data in FRAGMENTS))
    assert [store.read(1, MEMBER, index) for index in range(2)] == FRAGMENTS
    assert files(tmp_path) == [
        "round-000001/fr-bnf.contribution",
        "round-000001/fr-bnf.json",
    ]


def test_room_for_the_whole_contribution_is_taken_before_the_first_byte(
    store: FragmentStore, tmp_path: Path
) -> None:
    opened(store)
    path = tmp_path / "round-000001" / "fr-bnf.upload"
    assert path.stat().st_size == FULL_BYTES + 8
    assert path.stat().st_blocks * 512 >= FULL_BYTES


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_every_codec_is_stored_in_its_own_size(
    store: FragmentStore, tmp_path: Path, codec: str
) -> None:
    fragments = encoded(vector(), codec)
    opened(store, fragments, codec=codec)
    for index, data in enumerate(fragments):
        store.put(1, MEMBER, index=index, data=data)
    _root, norm = store.finish(1, MEMBER)
    assert norm == pytest.approx(5.0, rel=1e-6)
    size = (tmp_path / "round-000001" / "fr-bnf.contribution").stat().st_size
    assert size == sum(map(len, fragments))
    assert store.read(1, MEMBER, 1) == fragments[1]


def test_members_and_rounds_do_not_meet(store: FragmentStore) -> None:
    sent(store)
    store.open(1, "is-lbs", codec=CODEC, digests=digests(OTHERS), max_element=10.0)
    with pytest.raises(RejectedError, match="2 fragments are missing"):
        store.finish(1, "is-lbs")
    with pytest.raises(RejectedError, match="no upload is open"):
        store.put(2, MEMBER, index=0, data=FRAGMENTS[0])
    store.finish(1, MEMBER)


# Resuming


def test_after_a_restart_only_what_is_missing_is_asked_for(
    store: FragmentStore, tmp_path: Path
) -> None:
    opened(store)
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    restarted = again(tmp_path)
    assert opened(restarted) == [False, True]
    restarted.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    assert restarted.finish(1, MEMBER)[1] == 5.0, "the norm counts what came before the restart"


def test_a_fragment_half_written_in_a_crash_is_asked_for_again(
    store: FragmentStore, tmp_path: Path
) -> None:
    sent(store)
    with (tmp_path / "round-000001" / "fr-bnf.upload").open("r+b") as file:
        file.truncate(FULL_BYTES + 4)
    assert opened(again(tmp_path)) == [False, True]


def test_a_whole_contribution_is_found_again_if_only_its_record_was_lost(
    store: FragmentStore, tmp_path: Path
) -> None:
    sent(store)
    finished = store.finish(1, MEMBER)
    assert again(tmp_path).finished(1, MEMBER) == finished
    assert again(tmp_path).finished(1, "is-lbs") is None
    assert again(tmp_path).finished(2, MEMBER) is None


def test_a_whole_contribution_is_not_sent_a_second_time(
    store: FragmentStore, tmp_path: Path
) -> None:
    # A crash between `finish` and the record: the node asks anew what is missing.
    sent(store)
    store.finish(1, MEMBER)
    assert opened(again(tmp_path)) == [False, False]


def test_a_damaged_whole_contribution_does_not_count_as_found(
    store: FragmentStore, tmp_path: Path
) -> None:
    sent(store)
    store.finish(1, MEMBER)
    flip(tmp_path / "round-000001" / "fr-bnf.contribution", 0)
    assert again(tmp_path).finished(1, MEMBER) is None


def test_other_digests_replace_an_upload(store: FragmentStore) -> None:
    opened(store)
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    assert opened(store, OTHERS) == [True, True]
    with pytest.raises(RejectedError, match="fragment 0: its bytes do not have the announced"):
        store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    sent(store, OTHERS)
    assert store.finish(1, MEMBER)[1] == 2.5


def test_what_two_uploads_have_in_common_is_kept(store: FragmentStore) -> None:
    opened(store)
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    assert opened(store, [FRAGMENTS[0], OTHERS[1]]) == [False, True]


def test_a_contribution_sent_anew_after_a_refused_commit_replaces_the_first(
    store: FragmentStore,
) -> None:
    sent(store)
    store.finish(1, MEMBER)
    sent(store, OTHERS)
    assert store.finished(1, MEMBER) is None, "the whole file is the first one's"
    assert store.finish(1, MEMBER)[1] == 2.5
    assert store.read(1, MEMBER, 1) == OTHERS[1]


# Refusals


def test_a_fragment_without_an_upload_is_refused(store: FragmentStore, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="no upload is open: announce"):
        store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    assert files(tmp_path) == []


@pytest.mark.parametrize("index", [-1, 2, 2**32 - 1])
def test_a_fragment_that_does_not_exist_is_refused(store: FragmentStore, index: int) -> None:
    opened(store)
    with pytest.raises(RejectedError, match=f"fragment {index} does not exist.*fragments 0 to 1"):
        store.put(1, MEMBER, index=index, data=FRAGMENTS[1])


def test_bytes_with_another_digest_are_refused_and_not_kept(
    store: FragmentStore, tmp_path: Path
) -> None:
    opened(store)
    changed = bytes([FRAGMENTS[1][0] ^ 1]) + FRAGMENTS[1][1:]
    with pytest.raises(RejectedError, match="fragment 1: its bytes do not have the announced"):
        store.put(1, MEMBER, index=1, data=changed)
    assert opened(store) == [True, True]
    stored = (tmp_path / "round-000001" / "fr-bnf.upload").read_bytes()
    assert stored == bytes(FULL_BYTES + 8)


def one_odd(*last_two: float) -> list[bytes]:
    """Fragments whose second is made of these bits, without an encoder that refuses them."""
    return [FRAGMENTS[0], np.array(last_two, "<f4").tobytes()]


@pytest.mark.parametrize(
    ("fragments", "cause"),
    [
        ([FRAGMENTS[0], b"\x00" * 7], "float32 fragment of 2 elements has 8 bytes, got 7"),
        ([FRAGMENTS[0], b"\x00" * 12], "float32 fragment of 2 elements has 8 bytes, got 12"),
        ([FRAGMENTS[0], b""], "float32 fragment of 2 elements has 8 bytes, got 0"),
        (one_odd(1.0, float("nan")), "NaN or infinite elements"),
        (one_odd(float("-inf"), 1.0), "NaN or infinite elements"),
        (one_odd(1.0, -10.5), r"element of 10.5, the federation accepts up to 10: .*lower the lea"),
    ],
)
def test_a_fragment_that_is_as_announced_but_no_part_of_a_vector_is_refused(
    store: FragmentStore, fragments: list[bytes], cause: str
) -> None:
    opened(store, fragments)
    with pytest.raises(RejectedError, match=cause):
        store.put(1, MEMBER, index=1, data=fragments[1])
    assert opened(store, fragments) == [True, True]
    with pytest.raises(RejectedError, match="2 fragments are missing"):
        store.finish(1, MEMBER)


def test_the_largest_element_that_the_federation_accepts_is_accepted(store: FragmentStore) -> None:
    fragments = one_odd(10.0, -10.0)
    opened(store, fragments)
    store.put(1, MEMBER, index=1, data=fragments[1])
    assert opened(store, fragments) == [True, False]


def test_a_fragment_sent_twice_is_harmless(store: FragmentStore) -> None:
    sent(store)
    sent(store)
    store.put(1, MEMBER, index=0, data=b"whatever: it is here already")
    assert store.finish(1, MEMBER)[1] == 5.0
    assert store.read(1, MEMBER, 0) == FRAGMENTS[0]


def test_an_unknown_codec_is_refused(store: FragmentStore, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="unknown codec 'pickle': this version has bfloat16"):
        store.open(1, MEMBER, codec="pickle", digests=digests(FRAGMENTS), max_element=10.0)
    assert files(tmp_path) == []


def test_what_is_not_whole_cannot_be_finished(store: FragmentStore, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="all fragments are missing: send them before"):
        store.finish(1, MEMBER)
    opened(store)
    store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    with pytest.raises(RejectedError, match="1 fragments are missing: send them before"):
        store.finish(1, MEMBER)
    assert "round-000001/fr-bnf.upload" in files(tmp_path)
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    store.finish(1, MEMBER)


# Disks


@pytest.mark.parametrize(
    ("number", "cause"), [(errno.ENOSPC, "its disk is full"), (errno.EIO, "Input/output error")]
)
def test_a_disk_without_room_is_said_to_the_node_which_may_come_again(
    store: FragmentStore, monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    def fail(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", fail)
        with pytest.raises(UnavailableError, match=f"cannot store this contribution now: {cause}"):
            opened(store)
        with pytest.raises(RejectedError, match="no upload is open"):
            store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    sent(store)
    assert store.finish(1, MEMBER)[1] == 5.0


def test_a_write_that_fails_leaves_the_fragment_missing(
    store: FragmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened(store)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        with pytest.raises(UnavailableError, match="its disk is full"):
            store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    assert opened(store) == [True, True]


def test_a_write_that_stops_half_way_leaves_the_fragment_missing(
    store: FragmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pwrite may write less than it was given, and says how much.
    write = os.pwrite
    opened(store)
    with monkeypatch.context() as short:
        short.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:4], offset))
        try:
            store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
        except UnavailableError:
            assert opened(store) == [True, True]
            return
    store.put(1, MEMBER, index=0, data=FRAGMENTS[0])
    store.finish(1, MEMBER)
    assert store.read(1, MEMBER, 1) == FRAGMENTS[1]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_fragment_damaged_on_the_disk_is_found_when_it_is_read(
    store: FragmentStore, tmp_path: Path, *, is_restarted: bool
) -> None:
    sent(store)
    store.finish(1, MEMBER)
    flip(tmp_path / "round-000001" / "fr-bnf.contribution", FULL_BYTES)
    reader = again(tmp_path) if is_restarted else store
    assert reader.read(1, MEMBER, 0) == FRAGMENTS[0]
    with pytest.raises(UnavailableError, match=r"fr-bnf\.contribution: fragment 1 is damaged"):
        reader.read(1, MEMBER, 1)


@pytest.mark.parametrize("name", ["fr-bnf.contribution", "fr-bnf.json"])
def test_a_contribution_that_is_gone_is_unavailable(
    store: FragmentStore, tmp_path: Path, name: str
) -> None:
    sent(store)
    store.finish(1, MEMBER)
    (tmp_path / "round-000001" / name).unlink()
    with pytest.raises(UnavailableError, match="fr-bnf"):
        store.read(1, MEMBER, 0)


def test_an_upload_that_was_given_up_is_not_kept_open_for_ever(
    store: FragmentStore, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        opened(store, round_=number)
    store.prune(before=10)
    kept = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert [path for path in kept if path.startswith(str(tmp_path))] == []


# One member's calls at once


class Interlude:
    """Another thread's turn, once, just before a system call; a lock may keep it waiting."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, call: str, work: Callable[[], object]
    ) -> None:
        self._real = getattr(os, call)
        self._thread = threading.Thread(target=work)
        self._begun = False
        monkeypatch.setattr(os, call, self)

    def __call__(self, *arguments: object) -> object:
        if not self._begun:
            self._begun = True
            self._thread.start()
            self._thread.join(timeout=0.5)
        return self._real(*arguments)

    def end(self) -> None:
        self._thread.join()


def test_an_upload_replaced_while_a_fragment_is_written_does_not_keep_the_old_bytes(
    store: FragmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store)
    interlude = Interlude(monkeypatch, "pwrite", lambda: sent(store, OTHERS))
    store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    interlude.end()
    if any(opened(store, OTHERS)):
        return  # the damage was noticed: the fragment is asked for again
    store.finish(1, MEMBER)
    assert store.read(1, MEMBER, 1) == OTHERS[1], "accepted, and never to be aggregated"


def test_an_upload_replaced_while_it_is_finished_stays_readable_as_what_was_finished(
    store: FragmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(store)
    interlude = Interlude(monkeypatch, "fsync", lambda: opened(store, OTHERS))
    try:
        _root, norm = store.finish(1, MEMBER)
    except RejectedError:
        return  # not accepted: nothing is promised
    finally:
        interlude.end()
    assert norm == 5.0
    assert store.read(1, MEMBER, 1) == FRAGMENTS[1], "accepted, and never to be aggregated"


def test_an_upload_given_up_while_a_fragment_is_written_leaves_other_files_alone(
    store: FragmentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [tmp_path / f"other-{number}" for number in range(20)]
    with ExitStack() as stack:

        def give_up() -> None:
            """And open files, of which one gets the number that the upload's had."""
            store.prune(before=10)
            for other in others:
                stack.enter_context(other.open("wb"))

        opened(store)
        interlude = Interlude(monkeypatch, "pwrite", give_up)
        store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
        interlude.end()
    assert [other.read_bytes() for other in others] == [b""] * 20


# Room


def test_old_rounds_are_removed_and_new_ones_stay(store: FragmentStore, tmp_path: Path) -> None:
    for number in (1, 2, 10):
        sent(store, round_=number)
        store.finish(number, MEMBER)
    store.prune(before=3)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["round-000010"]
    assert store.read(10, MEMBER, 1) == FRAGMENTS[1]
    store.prune(before=3)
    shutil.rmtree(tmp_path)
    store.prune(before=3)


# Pieces


def pieces(data: bytes, size: int = 2**20) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def take(store: FragmentStore, data: bytes, *, index: int = 0, size: int = 2**20) -> int:
    return store.take(1, MEMBER, index=index, pieces=pieces(data, size))


@pytest.mark.parametrize("size", [2**20, 1_000_001, FULL_BYTES - 1, FULL_BYTES])
def test_a_fragment_in_pieces_is_the_same_as_in_one(store: FragmentStore, size: int) -> None:
    opened(store)
    assert take(store, FRAGMENTS[1], index=1, size=3) == 8
    assert take(store, FRAGMENTS[0], size=size) == FULL_BYTES
    assert opened(store) == [False, False]
    assert store.finish(1, MEMBER)[1] == 5.0
    assert [store.read(1, MEMBER, index) for index in range(2)] == FRAGMENTS


@pytest.mark.parametrize("codec", ["bfloat16", "int8"])
def test_every_codec_comes_in_pieces(store: FragmentStore, codec: str) -> None:
    fragments = encoded(vector(), codec)
    opened(store, fragments, codec=codec)
    for index, data in enumerate(fragments):
        take(store, data, index=index, size=100_000)
    assert store.finish(1, MEMBER)[1] == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        pytest.param(FRAGMENTS[0][:-1], "has 4,194,304 bytes, and 4,194,303 came", id="short"),
        pytest.param(FRAGMENTS[0] + b"\0", "has 4,194,304 bytes, and more came", id="long"),
        pytest.param(OTHERS[0], "do not have the announced digest", id="another"),
        pytest.param(FRAGMENTS[0][:-1] + b"\1", "do not have the announced digest", id="one bit"),
    ],
)
def test_pieces_that_are_not_what_was_announced_do_not_count(
    store: FragmentStore, data: bytes, cause: str
) -> None:
    opened(store)
    with pytest.raises(RejectedError, match=cause):
        take(store, data)
    assert opened(store) == [True, True]
    take(store, FRAGMENTS[0])
    assert opened(store) == [False, True]


def test_pieces_of_what_is_no_part_of_a_vector_are_refused(store: FragmentStore) -> None:
    odd = [np.full(FRAGMENT_ELEMENTS, np.nan, np.float32).tobytes(), FRAGMENTS[1]]
    opened(store, odd)
    with pytest.raises(RejectedError, match=r"finite|NaN"):
        take(store, odd[0])
    assert opened(store, odd) == [True, True]


def test_pieces_that_stop_coming_leave_the_fragment_missing(
    store: FragmentStore, tmp_path: Path
) -> None:
    full = encoded(np.ones(LAYOUT.elements, np.float32))

    def broken() -> Iterator[bytes]:
        yield full[0][: 2**20]
        yield full[0][2**20 : 2**21]
        raise ConnectionResetError

    opened(store, full)
    with pytest.raises(ConnectionResetError):
        store.take(1, MEMBER, index=0, pieces=broken())
    assert opened(store, full) == [True, True]
    assert opened(again(tmp_path), full) == [True, True]
    take(store, full[0])
    assert opened(store, full) == [False, True]


def test_a_fragment_that_is_there_is_not_written_over(store: FragmentStore) -> None:
    sent(store)
    assert take(store, OTHERS[0]) == FULL_BYTES
    store.finish(1, MEMBER)
    assert store.read(1, MEMBER, 0) == FRAGMENTS[0]
    assert take(store, FRAGMENTS[0]) == FULL_BYTES, "repeated after the commit"
    with pytest.raises(RejectedError, match="no upload is open"):
        take(store, OTHERS[0])


def test_the_newest_call_brings_a_fragment_and_older_ones_end(store: FragmentStore) -> None:
    """A line broke: what it had under way is sent again while the old call still hangs."""
    opened(store)

    def overtaken() -> Iterator[bytes]:
        yield OTHERS[0][: 2**20]
        yield OTHERS[0][2**20 : 2**21]
        take(store, FRAGMENTS[0])
        yield OTHERS[0][2**21 :]

    store.take(1, MEMBER, index=0, pieces=overtaken())  # what came later is there: it passes
    assert opened(store) == [False, True]
    store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    store.finish(1, MEMBER)
    assert [store.read(1, MEMBER, index) for index in range(2)] == FRAGMENTS


def test_a_call_that_was_overtaken_writes_no_more(store: FragmentStore) -> None:
    opened(store)
    old: queue.Queue[bytes] = queue.Queue()
    new: queue.Queue[bytes] = queue.Queue()

    def begun(pieces: queue.Queue[bytes], data: bytes) -> Future[int]:
        """Begin to bring a fragment; two pieces of it are written when this returns."""
        third = threading.Event()

        def coming() -> Iterator[bytes]:
            yield from (data[start : start + 2**20] for start in (0, 2**20))
            third.set()
            yield from iter(lambda: pieces.get(timeout=30), b"")

        bringing = pool.submit(store.take, 1, MEMBER, index=0, pieces=coming())
        assert third.wait(30)
        return bringing

    with ThreadPoolExecutor(2) as pool:
        older = begun(old, OTHERS[0])
        newer = begun(new, FRAGMENTS[0])
        old.put(OTHERS[0][2**21 : 3 * 2**20])
        with pytest.raises(UnavailableError, match="fragment 0 is brought by another call"):
            older.result()
        for data in (FRAGMENTS[0][2**21 :], b""):
            new.put(data)
        assert newer.result() == FULL_BYTES
    assert opened(store) == [False, True]
    store.put(1, MEMBER, index=1, data=FRAGMENTS[1])
    store.finish(1, MEMBER)
    assert store.read(1, MEMBER, 0) == FRAGMENTS[0]


def test_an_upload_replaced_between_two_pieces_keeps_nothing_of_the_old_one(
    store: FragmentStore,
) -> None:
    opened(store)

    def replaced() -> Iterator[bytes]:
        yield FRAGMENTS[0][: 2**20]
        yield FRAGMENTS[0][2**20 : 2**21]
        sent(store, OTHERS)
        yield FRAGMENTS[0][2**21 :]

    with pytest.raises(RejectedError, match="no upload is open"):
        store.take(1, MEMBER, index=0, pieces=replaced())
    store.finish(1, MEMBER)
    assert [store.read(1, MEMBER, index) for index in range(2)] == OTHERS


def test_pieces_without_an_upload_are_refused(store: FragmentStore) -> None:
    with pytest.raises(RejectedError, match="no upload is open"):
        take(store, FRAGMENTS[0])
