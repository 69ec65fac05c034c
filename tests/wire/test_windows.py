"""How many fragments may be in flight: granted, shared anew, enforced; over real connections."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import UnavailableError
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry.wire.bulk import BulkStub, Pieces, PutFragment
from tapestry.wire.limits import FRAGMENTS_IN_FLIGHT, PIECE_BYTES, UPLOADS_IN_FLIGHT
from tapestry_coordinator.uploads import FragmentStore
from tapestry_coordinator.windows import Grant, Windows
from tests.coordinator.small import Small, found_small
from tests.wire.conftest import ROUNDS
from tests.wire.serving import Coordinator, Line, gathered
from tests.wire.test_places import eventually

FRAGMENTS = [bytes(4 * FRAGMENT_ELEMENTS), bytes(8)]
THREE = ("a", "b", "c")
SECONDS = 30.0


class Counting(FragmentStore):
    """Tells how many fragments are read at once; may be held up."""

    def __init__(self, small: Small) -> None:
        super().__init__(small.home.contributions, small.layout)
        self.small = small
        self.go = threading.Event()
        self.go.set()
        self.reading = 0
        self._counting = threading.Lock()

    def take(self, *arguments: Any, **options: Any) -> int:
        with self._counting:
            self.reading += 1
        try:
            self.go.wait(SECONDS)
            return super().take(*arguments, **options)
        finally:
            with self._counting:
                self.reading -= 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    counting = Counting(found_small(tmp_path / "fed", FRAGMENT_ELEMENTS + 2, rounds=ROUNDS))
    yield counting
    counting.go.set()


@pytest.fixture
def serving(store: Counting) -> Iterator[Coordinator]:
    coordinator = Coordinator(store.small, store=store)
    yield coordinator
    store.go.set()
    coordinator.stop()


def open_all(plan: RoundPlan, lines: dict[str, Line]) -> list[int]:
    return [line.open_upload(plan, FRAGMENTS).window for line in lines.values()]


def send(line: Line, index: int, *, in_pieces: bool = True) -> int:
    """Send a fragment; return what may be in flight from now on."""
    fragment, bulk = PutFragment(1, index, FRAGMENTS[index]), BulkStub(line.channel)
    if in_pieces:
        return bulk.put_pieces(Pieces(fragment), timeout=SECONDS).window
    return bulk.put_fragment(fragment, timeout=SECONDS).window


def commit(plan: RoundPlan, line: Line) -> None:
    line.commit(line.declared(plan, FRAGMENTS, norm=0.0))


def test_uploads_share_what_may_be_in_flight_and_get_it_back_when_others_end(
    serving: Coordinator, stack: ExitStack
) -> None:
    assert (UPLOADS_IN_FLIGHT, FRAGMENTS_IN_FLIGHT) == (4, 8)
    plan, lines = gathered(serving, stack, *THREE)
    a, b, c = lines.values()
    assert open_all(plan, lines) == [4, 4, 2]
    assert [send(b, 0), send(b, 1), send(c, 0), send(c, 1), send(a, 0)] == [2] * 5
    commit(plan, b)
    assert send(a, 1) == 4
    assert c.open_upload(plan, FRAGMENTS).window == 4
    commit(plan, c)
    assert a.open_upload(plan, FRAGMENTS).window == 4


@pytest.mark.parametrize("in_pieces", [True, False])
def test_who_sends_more_than_was_granted_waits_and_is_not_refused(
    serving: Coordinator, store: Counting, stack: ExitStack, *, in_pieces: bool
) -> None:
    plan, lines = gathered(serving, stack, *THREE)
    a, b, _c = lines.values()
    assert open_all(plan, lines)[-1] == 2
    store.go.clear()
    pool = stack.enter_context(ThreadPoolExecutor(8))
    sent = [pool.submit(send, a, 1, in_pieces=in_pieces) for _ in range(7)]
    # five wait, and two are read
    eventually(lambda: (serving.places.waiting, store.reading) == (5, 2), seconds=SECONDS)
    others = pool.submit(send, b, 0)
    eventually(lambda: store.reading == 3, seconds=SECONDS)  # nobody else waits for that member
    store.go.set()
    assert [future.result() for future in sent] == [2] * 7
    assert others.result() == 2
    send(a, 0)
    commit(plan, a)


def test_a_call_that_waits_is_read_as_soon_as_another_upload_ends(
    serving: Coordinator, store: Counting, stack: ExitStack
) -> None:
    plan, lines = gathered(serving, stack, *THREE)
    a, b, c = lines.values()
    open_all(plan, lines)
    for index in (0, 1):
        send(c, index)
        send(b, index)
    store.go.clear()
    pool = stack.enter_context(ThreadPoolExecutor(4))
    sent = [pool.submit(send, a, 1) for _ in range(4)]
    eventually(lambda: serving.places.waiting == 2, seconds=SECONDS)
    commit(plan, c)
    eventually(lambda: store.reading == 4, seconds=SECONDS)
    store.go.set()
    assert [future.result() for future in sent] == [4] * 4


def test_calls_of_a_line_that_died_do_not_keep_the_next_attempt_waiting(
    serving: Coordinator, store: Counting, stack: ExitStack
) -> None:
    plan, lines = gathered(serving, stack, "a", "b")
    a = lines["a"]
    open_all(plan, lines)
    store.go.clear()
    pool = stack.enter_context(ThreadPoolExecutor(5))
    stuck = [pool.submit(send, a, 1) for _ in range(4)]
    eventually(lambda: store.reading == 4, seconds=SECONDS)
    with a.member.connected() as again:
        again.open_upload(plan, FRAGMENTS)
        late = pool.submit(send, again, 0)
        eventually(lambda: store.reading == 5, seconds=SECONDS)
        store.go.set()
        assert late.result() == 4
    assert [future.result() for future in stuck] == [4] * 4


def test_a_fragment_in_pieces_is_stored_as_it_is(serving: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(serving, stack)
    a = lines["a"]
    a.open_upload(plan, FRAGMENTS)
    assert (
        len(list(Pieces(PutFragment(1, 0, FRAGMENTS[0])))) == 4 * FRAGMENT_ELEMENTS // PIECE_BYTES
    )
    for index in (1, 0):
        send(a, index)
    commit(plan, a)
    assert [serving.store.read(1, "a", index) for index in (0, 1)] == FRAGMENTS


# The shares alone, by a clock of ours


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("uploads", "fragments", "mebibytes"),
    [(1, 4, 4), (2, 4, 4), (3, 2, 4), (4, 2, 4), (5, 1, 4), (8, 1, 4), (9, 1, 1), (100, 1, 1)],
)
def test_all_have_the_same_and_nobody_less_than_one(
    uploads: int, fragments: int, mebibytes: int
) -> None:
    windows = Windows(clock=Clock())
    for number in range(uploads):
        windows.open(f"member-{number}")
    granted = {windows.granted(f"member-{number}") for number in range(uploads)}
    assert granted == {Grant(fragments, mebibytes * 2**20)}


def test_an_upload_that_keeps_still_leaves_its_share_to_the_others() -> None:
    clock = Clock()
    windows = Windows(clock=clock)
    for member in THREE:
        windows.open(member)
    clock.now = 29.0
    with windows.place("a", lambda: True):
        pass
    assert windows.granted("a").fragments == 2
    clock.now = 31.0
    assert windows.granted("a").fragments == 4
    with windows.place("b", lambda: True):  # it is back
        assert windows.granted("a").fragments == 4
        clock.now = 1000.0
        with windows.place("c", lambda: True):
            assert windows.granted("c").fragments == 4, "a has not been heard of for longer"


def test_who_announced_nothing_has_one_place_and_takes_none_from_others() -> None:
    windows = Windows(clock=Clock())
    for member in ("a", "b"):
        windows.open(member)
    with windows.place("stranger", lambda: True):
        assert windows.granted("a").fragments == 4
        with (
            pytest.raises(UnavailableError, match="given up while it waited"),
            windows.place("stranger", lambda: False),
        ):
            pass
    with windows.place("stranger", lambda: True):
        pass


def test_a_place_is_left_however_the_call_ends() -> None:
    windows = Windows(clock=Clock())
    for _ in range(5):
        with pytest.raises(ConnectionResetError), windows.place("a", lambda: True):
            raise ConnectionResetError
    with windows.place("a", lambda: False):
        pass


def test_a_call_from_before_the_announcement_takes_nothing_of_it_when_it_ends() -> None:
    windows = Windows(clock=Clock())
    with windows.place("a", lambda: True):
        assert windows.open("a").fragments == 4
    assert windows.granted("a").fragments == 4


def test_who_announced_nothing_has_one_place_even_while_calls_take_turns() -> None:
    windows = Windows(clock=Clock())
    read, waiting, go = [], threading.Event(), threading.Event()

    def second() -> None:
        with windows.place("a", lambda: waiting.set() or True):
            read.append(2)
            go.wait(SECONDS)

    with ThreadPoolExecutor(1) as pool:
        with windows.place("a", lambda: True):
            turn = pool.submit(second)
            waiting.wait(SECONDS)
        eventually(lambda: read == [2])
        with (
            pytest.raises(UnavailableError, match="given up while it waited"),
            windows.place("a", lambda: False),
        ):
            read.append(3)
        go.set()
        turn.result()
    assert read == [2]
