"""Manifests that are read when they are looked at."""

from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.chain import Chain, Followed


def link(number: int) -> Envelope:
    return Envelope("text/plain", str(number).encode(), "", b"")


class Reading:
    """A database that notes how many manifests it was asked for at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, begin: int, end: int) -> list[Envelope]:
        self.asked.append(end - begin)
        return [link(number) for number in range(begin, end)]


def test_a_long_chain_is_walked_along_a_few_at_a_time() -> None:
    reading = Reading()
    chain = Chain(reading, 100)
    assert [int(one.payload) for one in chain] == list(range(100))
    assert max(reading.asked) <= 16


def test_ends_are_read_alone() -> None:
    reading = Reading()
    chain = Chain(reading, 1000)
    assert (chain[0], chain[-1], len(chain)) == (link(0), link(999), 1000)
    assert reading.asked == [1, 1]


def test_one_more_link_is_not_read_from_the_database() -> None:
    reading = Reading()
    longer = Followed(Chain(reading, 3), link(9))
    assert (longer[-1], len(longer)) == (link(9), 4)
    assert reading.asked == []
    assert [int(one.payload) for one in longer] == [0, 1, 2, 9]
    assert longer[2:] == [link(2), link(9)]
