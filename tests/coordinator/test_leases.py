"""Who leads: one at a time, and whoever led before can write nothing."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, select

from tapestry.errors import UnavailableError
from tapestry_coordinator.events import Published
from tapestry_coordinator.leases import LEASE_SECONDS, Holder, Lease, NotLeadingError
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.tables import leases
from tests.servers import Postgres


class Hand:
    """A clock whose hand the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def north(url: str, hand: Hand) -> Iterator[Lease]:
    lease = Lease(url, Holder("north", "n"), clock=hand)
    yield lease
    lease.close()


@pytest.fixture
def south(url: str, hand: Hand) -> Iterator[Lease]:
    lease = Lease(url, Holder("south", "s"), clock=hand)
    yield lease
    lease.close()


def expire(lease: Lease, hand: Hand) -> None:
    """Let `lease` see that nobody renews it for long enough."""
    assert not lease.take()
    hand.now += LEASE_SECONDS


def test_the_first_to_come_leads_and_the_other_learns_who(north: Lease, south: Lease) -> None:
    assert north.take()
    assert not south.take()
    assert (north.term, south.leader) == (1, "north")


def test_a_lease_that_is_renewed_is_never_taken(north: Lease, south: Lease, hand: Hand) -> None:
    assert north.take()
    for _beat in range(5):
        north.renew()
        assert not south.take()
        hand.now += LEASE_SECONDS - 0.1
        assert not south.take()
    assert not north.is_lost


def test_a_lease_that_nobody_renews_is_taken_with_the_next_term(
    north: Lease, south: Lease, hand: Hand
) -> None:
    assert north.take()
    expire(south, hand)
    assert south.take()
    assert south.term == 2
    with pytest.raises(NotLeadingError, match="another coordinator took over"):
        north.renew()
    assert north.is_lost
    assert not north.take(), "it stands by like any other"
    expire(north, hand)
    assert north.take()
    assert (north.term, north.is_lost) == (3, False)


def test_seconds_without_the_database_do_not_count(
    north: Lease, south: Lease, hand: Hand, postgres: Postgres
) -> None:
    assert north.take()
    assert not south.take()
    postgres.stop()
    try:
        hand.now += 100 * LEASE_SECONDS
        for lease in (south.take, north.renew):
            with pytest.raises(UnavailableError, match="does not answer now"):
                lease()
    finally:
        postgres.start()
    assert not south.take(), "whoever leads has the time of a lease to come back"
    north.renew()
    expire(south, hand)
    assert south.take()


def test_what_is_given_back_is_taken_at_once(north: Lease, south: Lease) -> None:
    assert north.take()
    with north.kept():
        assert not south.take()
    assert south.take()


def test_an_ended_process_of_the_same_folder_is_succeeded_at_once_but_only_at_the_start(
    url: str, north: Lease, south: Lease
) -> None:
    assert north.take()
    again = Lease(url, Holder("north", "n"))
    assert again.take()
    with pytest.raises(NotLeadingError):
        north.renew()
    assert not north.take(), "two with one name do not take it from each other for ever"
    again.close()
    assert not south.take()


class Interrupted(Lease):
    """Whose database is gone once, before it has recorded who takes it."""

    breaks = True

    def _taken(self, connection: Connection) -> int | None:
        term = super()._taken(connection)
        if self.breaks:
            self.breaks = False
            raise UnavailableError("the database does not answer now")
        return term


def test_what_the_database_did_not_record_changes_nothing(url: str, north: Lease) -> None:
    assert north.take()
    again = Interrupted(url, Holder("north", "n"))
    with pytest.raises(UnavailableError):
        again.take()
    assert again.term == 0
    assert again.take(), "it is still the first time, of the folder that held it before"
    assert again.term == 2
    again.close()


def test_a_lease_is_renewed_while_it_is_kept(url: str, north: Lease) -> None:
    def beat() -> int:
        with engine.connect() as connection:
            return int(connection.execute(select(leases.c.beat)).scalar_one())

    engine = create_engine(url)
    assert north.take()
    with north.kept():
        first = beat()
        deadline = time.monotonic() + 60
        while beat() < first + 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    engine.dispose()


def test_one_of_many_takes_a_free_lease(url: str) -> None:
    many = [Lease(url, Holder(f"c{n}", str(n))) for n in range(6)]
    barrier, won = threading.Barrier(len(many)), []

    def run(lease: Lease) -> None:
        barrier.wait()
        if lease.take():
            won.append(lease)

    threads = [threading.Thread(target=run, args=(lease,)) for lease in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lease.term for lease in won] == [1]
    for lease in many:
        lease.close()


def test_a_registry_with_the_term_before_writes_and_reads_nothing(
    url: str, north: Lease, south: Lease, hand: Hand
) -> None:
    registry, witness = Registry(url), Registry(url)
    assert north.take()
    registry.fence(north.require)
    registry.record_event(1, Published(manifest="a" * 64), now=1.0)
    expire(south, hand)
    assert south.take()
    for call in (
        lambda: registry.record_event(1, Published(manifest="b" * 64), now=2.0),
        registry.members,
        registry.newest_round,
    ):
        with pytest.raises(NotLeadingError, match="leads now: connect again"):
            call()
    assert north.is_lost, "learnt at the first transaction, not at the next beat"
    assert len(witness.round_events(1)) == 1
    registry.close()
    witness.close()


def test_a_coordinator_is_known_by_machine_and_folder(tmp_path: Path) -> None:
    first, again = Holder.of(tmp_path / "a"), Holder.of(tmp_path / "a")
    other = Holder.of(tmp_path / "b")
    assert first == again
    assert first.identity != other.identity
    assert first.name.endswith(str(tmp_path / "a"))
    assert os.uname().nodename in first.name
