"""The registry on a real SQLite file."""

import hashlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import IntegrityError

from tapestry.errors import ConfigError, RejectedError
from tapestry.identity.envelopes import Envelope, sign
from tapestry_coordinator.database import sqlite_url
from tapestry_coordinator.events import Arrived, Published, RoundRules, Tick
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.tables import metadata
from tapestry_coordinator.testimony import StoredEvaluation
from tests.coordinator.small import arriving

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = b"p" * 32
RULES = RoundRules(quorum=2, gather_seconds=1.5, grace_seconds=30, deadline_seconds=100, total=0)
OPENED = Tick(ready=("a", "b"), enrolled=2, rules=RULES)
MEASURED = StoredEvaluation(
    round=1, member_id="a", language="fr", bits_per_byte=2.5, held_out_bytes=4096
)


def statement(text: str) -> Envelope:
    return sign("application/vnd.tapestry.test+json", text.encode(), KEY)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def token(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def contribution(member_id: str = "a", *, number: int = 1) -> StoredContribution:
    return StoredContribution(
        round=number,
        member_id=member_id,
        digest=digest(member_id),
        envelope=statement(f"contribution of {member_id}"),
        receipt=statement(f"receipt for {member_id}"),
        norm=1.5,
        signing_key=bytes(32),
    )


@pytest.fixture
def registry(database: str) -> Iterator[Registry]:
    opened = Registry(database)
    yield opened
    opened.close()


def invite(registry: Registry, member_id: str = "fr-bnf", *, word: str = "open sesame") -> bytes:
    """Remember an invitation that is good from 100 to 200 seconds."""
    registry.add_invitation(token(word), member_id=member_id, now=100.0, expires_at=200.0)
    return token(word)


def enrol(
    registry: Registry,
    secret: bytes,
    member_id: str = "fr-bnf",
    *,
    serial: int = 0xABC,
    now: float = 150.0,
) -> None:
    registry.enrol(
        secret, member_id=member_id, signing_key=PUBLIC, certificate_serial=serial, now=now
    )


# The schema


def test_migrations_lead_from_nothing_to_the_tables_that_the_code_uses(database: str) -> None:
    Registry(database).close()
    engine = create_engine(database)
    found = inspect(engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
    for name, table in metadata.tables.items():
        columns = {c["name"]: c["nullable"] for c in found.get_columns(name)}
        assert columns == {c.name: c.nullable for c in table.columns}, name
        key = found.get_pk_constraint(name)["constrained_columns"]
        assert key == [c.name for c in table.primary_key.columns], name
        indexes = {
            index["name"]
            for index in found.get_indexes(name)
            if "duplicates_constraint" not in index
        }
        assert indexes == {index.name for index in table.indexes}, name
    engine.dispose()


def test_opening_again_changes_nothing_and_finds_everything(database: str) -> None:
    first = Registry(database)
    enrol(first, invite(first))
    first.close()
    second = Registry(database)
    assert [m.member_id for m in second.members()] == ["fr-bnf"]
    second.close()


def test_commits_are_durable_and_readers_are_not_blocked(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    with sqlite3.connect(tmp_path / "coordinator.db") as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.execute("BEGIN")
        other.execute("SELECT * FROM members").fetchall()
        enrol(registry, invite(registry))
        assert other.execute("SELECT * FROM members").fetchall() == []
    other.close()
    registry.close()


def test_what_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "coordinator.db").write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(
        ConfigError, match=r"coordinator\.db: the database file is damaged.*restore a"
    ):
        Registry(sqlite_url(tmp_path))
    with pytest.raises(ConfigError, match="the database cannot be opened"):
        Registry(sqlite_url(tmp_path / "nowhere"))


def test_a_database_of_a_newer_version_is_refused_in_one_line(tmp_path: Path) -> None:
    Registry(sqlite_url(tmp_path)).close()
    with sqlite3.connect(tmp_path / "coordinator.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(ConfigError, match=r"coordinator\.db"):
        Registry(sqlite_url(tmp_path))


def test_a_migration_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "coordinator.db") as database:
        database.execute("CREATE TABLE plans (round INTEGER)")  # the last of its tables
    with pytest.raises(ConfigError, match="table plans already exists"):
        Registry(sqlite_url(tmp_path))
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    database.close()
    assert names == ["plans"], "a crash there, and no later start can open the database"


# Membership


def test_an_invitation_makes_a_member_once(registry: Registry) -> None:
    secret = invite(registry)
    registry.require_invitation(secret, member_id="fr-bnf", now=150.0)
    enrol(registry, secret)
    member = registry.member("fr-bnf")
    assert member is not None
    assert (member.signing_key, member.status) == (PUBLIC.hex(), "active")
    assert (member.certificate_serial, member.joined_at) == ("abc", 150.0)
    with pytest.raises(RejectedError, match="was used already: ask for a new one"):
        enrol(registry, secret, serial=1)
    unchanged = registry.member("fr-bnf")
    assert unchanged == member


def test_looking_at_an_invitation_does_not_use_it(registry: Registry) -> None:
    secret = invite(registry)
    for _time in range(3):
        registry.require_invitation(secret, member_id="fr-bnf", now=150.0)
    enrol(registry, secret)


@pytest.mark.parametrize(
    ("word", "member_id", "now", "cause"),
    [
        ("guess", "fr-bnf", 150.0, "does not know this invitation"),
        ("open sesame", "is-lbs", 150.0, "does not know this invitation"),
        ("open sesame", "fr-bnf", 200.0, "has expired"),
    ],
)
def test_an_invitation_that_does_not_fit_is_refused_and_stays_as_it_was(
    registry: Registry, word: str, member_id: str, now: float, cause: str
) -> None:
    real = invite(registry)
    refused: Callable[[], None]
    for refused in (
        lambda: registry.require_invitation(token(word), member_id=member_id, now=now),
        lambda: enrol(registry, token(word), member_id, now=now),
    ):
        with pytest.raises(RejectedError, match=f"{cause}.*: ask for a new one"):
            refused()
    assert registry.members() == []
    enrol(registry, real, now=199.9)


def test_only_the_digest_of_a_token_is_kept(tmp_path: Path) -> None:
    registry, secret = Registry(sqlite_url(tmp_path)), b"t" * 32
    registry.add_invitation(hashlib.sha256(secret).digest(), member_id="a", now=0.0, expires_at=1.0)
    registry.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("coordinator.db*"))
    assert hashlib.sha256(secret).hexdigest().encode() in kept
    assert secret not in kept
    assert secret.hex().encode() not in kept


def test_who_is_a_member_is_not_invited_again_until_revoked(registry: Registry) -> None:
    enrol(registry, invite(registry))
    with pytest.raises(ConfigError, match="fr-bnf is a member already: choose another id"):
        invite(registry, word="second")
    registry.revoke("fr-bnf", now=150.0)
    enrol(registry, invite(registry, word="third"), serial=0xDEF)
    member = registry.member("fr-bnf")
    assert member is not None
    assert (member.status, member.certificate_serial) == ("active", "def")


def test_revoking_ends_one_membership_and_names_who_is_unknown(registry: Registry) -> None:
    for name in ("a", "b"):
        enrol(registry, invite(registry, name, word=name), name)
    registry.revoke("a", now=150.0)
    assert [(m.member_id, m.status) for m in registry.members()] == [
        ("a", "revoked"),
        ("b", "active"),
    ]
    with pytest.raises(ConfigError, match="z is not a member, and has no open invitation"):
        registry.revoke("z", now=150.0)


def test_renewing_replaces_the_serial_number_and_keeps_the_one_before(registry: Registry) -> None:
    enrol(registry, invite(registry))
    before = registry.member("fr-bnf")
    assert before is not None
    registry.renew("fr-bnf", certificate_serial=2**158)  # more than an integer column holds
    after = registry.member("fr-bnf")
    assert after == replace(
        before, certificate_serial=f"{2**158:x}", previous_serial=before.certificate_serial
    )


def test_a_member_that_was_heard_of_is_noted(registry: Registry) -> None:
    enrol(registry, invite(registry))
    registry.seen("fr-bnf", now=1234.5)
    member = registry.member("fr-bnf")
    assert member is not None
    assert (member.joined_at, member.last_seen_at) == (150.0, 1234.5)


def test_an_unknown_member_is_none(registry: Registry) -> None:
    assert registry.member("nobody") is None
    assert registry.members() == []


# Rounds


def test_events_come_back_in_order_with_their_times(registry: Registry) -> None:
    arrived = Arrived(member_id="a", digest=digest("a"))
    registry.record_event(1, OPENED, now=0.1)
    registry.record_event(2, OPENED, now=0.2)
    registry.record_event(1, arrived, now=1_750_000_000.123456)
    assert registry.round_events(1) == [(0.1, OPENED), (1_750_000_000.123456, arrived)]
    assert registry.round_events(3) == []


def test_an_event_is_stored_with_all_that_belongs_to_it(registry: Registry) -> None:
    plan, manifest, part = statement("plan"), statement("manifest"), contribution()
    registry.record_event(1, OPENED, now=1.0, plan=(1, digest("plan"), plan))
    arrived = Arrived(member_id="a", digest=part.digest)
    registry.record_event(1, arrived, now=2.0, contribution=arriving(part))
    published = Published(manifest=digest("manifest"))
    registry.record_event(1, published, now=3.0, manifest=(digest("manifest"), manifest))
    assert registry.plan(1, 1) == plan
    assert registry.plan(1, 2) is None
    assert registry.contribution(1, "a") == part
    assert registry.contribution(1, "b") is None
    assert registry.manifest(1) == manifest
    assert registry.round_of(digest("manifest")) == 1
    assert registry.newest_round() == 1


@pytest.mark.parametrize("what", ["plan", "contribution", "manifest"])
def test_what_cannot_be_stored_leaves_nothing_of_its_event(registry: Registry, what: str) -> None:
    belongings: dict[str, Any] = {
        "plan": (1, digest("plan"), statement("plan")),
        "contribution": arriving(contribution()),
        "manifest": (digest("manifest"), statement("manifest")),
    }
    registry.record_event(1, OPENED, now=1.0, **{what: belongings[what]})
    others = {name: value for name, value in belongings.items() if name != what}
    with pytest.raises(IntegrityError):
        registry.record_event(1, OPENED, now=2.0, **others, **{what: belongings[what]})
    assert registry.round_events(1) == [(1.0, OPENED)]
    kept = {
        "plan": registry.plan(1, 1) is not None,
        "contribution": registry.contributions(1) != [],
        "manifest": registry.newest_round() is not None,
    }
    assert kept == {name: name == what for name in belongings}
    assert len(registry.ledger.entries(0, 9)) == 1


def test_contributions_come_by_member_whatever_their_order_of_arrival(registry: Registry) -> None:
    for member_id in ("c", "a", "b"):
        part = contribution(member_id)
        registry.record_event(
            1,
            Arrived(member_id=member_id, digest=part.digest),
            now=1.0,
            contribution=arriving(part),
        )
    assert [c.member_id for c in registry.contributions(1)] == ["a", "b", "c"]
    assert registry.contributions(2) == []


def test_the_lineage_is_oldest_first_and_can_be_cut(registry: Registry) -> None:
    assert registry.newest_round() is None
    registry.add_genesis(digest("0"), statement("0"))
    for number in (1, 2, 3):
        text = str(number)
        registry.record_event(
            number,
            Published(manifest=digest(text)),
            now=1.0,
            manifest=(digest(text), statement(text)),
        )
    assert [e.payload for e in registry.lineage()] == [b"0", b"1", b"2", b"3"]
    assert [e.payload for e in registry.lineage(2)] == [b"0", b"1", b"2"]
    assert [e.payload for e in registry.lineage()[1:3]] == [b"1", b"2"]
    assert registry.lineage()[-1].payload == b"3"
    with pytest.raises(IndexError):
        registry.lineage(1)[2]
    assert registry.newest_round() == 3
    assert registry.round_of(digest("0")) == 0
    assert registry.round_of(digest("9")) is None
    assert registry.manifest(4) is None


def test_there_is_one_genesis(registry: Registry) -> None:
    registry.add_genesis(digest("0"), statement("0"))
    with pytest.raises(ConfigError, match="has a genesis already"):
        registry.add_genesis(digest("1"), statement("1"))


# Evaluations


def test_a_member_measures_again_and_the_newer_figure_counts(registry: Registry) -> None:
    registry.add_evaluation(MEASURED, now=1.0)
    registry.add_evaluation(replace(MEASURED, bits_per_byte=2.25), now=2.0)
    registry.add_evaluation(replace(MEASURED, member_id="b"), now=3.0)
    registry.add_evaluation(replace(MEASURED, round=0), now=4.0)
    assert [(e.round, e.member_id, e.bits_per_byte) for e in registry.evaluations()] == [
        (0, "a", 2.5),
        (1, "a", 2.25),
        (1, "b", 2.5),
    ]


# Several writers


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run `work` in `count` threads at once; return what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except (RejectedError, ConfigError, IntegrityError) as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_a_token_that_many_use_at_once_makes_one_member(registry: Registry) -> None:
    secret = invite(registry)
    raised = in_threads(8, lambda number: enrol(registry, secret, serial=number))
    assert len(raised) == 7
    assert all("was used already" in str(error) for error in raised)
    assert len(registry.members()) == 1


def test_threads_that_write_at_once_lose_nothing(registry: Registry) -> None:
    def work(number: int) -> None:
        for event in range(10):
            registry.record_event(number, Published(manifest=f"{event:064x}"), now=float(event))
            registry.add_evaluation(
                replace(MEASURED, member_id=f"m{number}", bits_per_byte=float(event)), now=0.0
            )

    assert in_threads(8, work) == []
    for number in range(8):
        assert [at for at, _event in registry.round_events(number)] == [float(e) for e in range(10)]
    assert {e.bits_per_byte for e in registry.evaluations()} == {9.0}


_WRITER = """
import sys
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.events import Published
registry = Registry(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    registry.record_event(int(sys.argv[2]), Published(manifest=f"{number:064x}"), now=float(number))
registry.close()
"""


def test_two_processes_write_at_once(registry: Registry, database: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, database, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    for number in (1, 2):
        assert [at for at, _event in registry.round_events(number)] == [float(n) for n in range(30)]
