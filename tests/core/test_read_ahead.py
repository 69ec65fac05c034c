"""The next piece is read while this one is worked on."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tapestry.storage.read_ahead import ReadAhead


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_values_come_as_they_are_asked_for(threads: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(lambda index: index * 10, count=4, threads=threads)
    assert [ahead(index) for index in range(4)] == [0, 10, 20, 30]


def test_a_second_pass_begins_anew_and_a_place_may_be_left_out(threads: ThreadPoolExecutor) -> None:
    ahead = ReadAhead(str, count=3, threads=threads)
    assert [ahead(index) for index in (0, 1, 2, 0, 2)] == ["0", "1", "2", "0", "2"]


def test_the_next_value_is_read_before_it_is_asked_for(threads: ThreadPoolExecutor) -> None:
    was_read = threading.Event()

    def read(index: int) -> int:
        if index == 1:
            was_read.set()
        return index

    ahead = ReadAhead(read, count=2, threads=threads)
    ahead(0)
    assert was_read.wait(5)


def test_nothing_past_the_end_is_read(threads: ThreadPoolExecutor) -> None:
    read: list[int] = []
    ahead = ReadAhead(read.append, count=2, threads=threads)
    ahead(0)
    ahead(1)
    threads.shutdown(wait=True)
    assert sorted(read) == [0, 1]


def test_what_reading_raises_is_raised_where_the_value_is_asked_for(
    threads: ThreadPoolExecutor,
) -> None:
    def read(index: int) -> int:
        if index == 1:
            raise OSError("gone")
        return index

    ahead = ReadAhead(read, count=2, threads=threads)
    assert ahead(0) == 0
    with pytest.raises(OSError, match="gone"):
        ahead(1)
