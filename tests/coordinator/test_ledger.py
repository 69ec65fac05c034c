"""The coordinator's ledger: in the database with what it speaks of, and in files beside it."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import tapestry_coordinator
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import RejectedError, UnavailableError, UntrustedError
from tapestry.ledger.entries import read_entry
from tapestry.ledger.folder import GENESIS_FILE
from tapestry.ledger.heads import Head, open_head, sign_head
from tapestry.ledger.merkle import merkle_root, verify_consistency, verify_inclusion
from tapestry.ledger.proof import PROOF_FILE, verify_ledger_proof
from tapestry_coordinator.database import database_url
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.events import Arrived, Published, RoundRules, Tick
from tapestry_coordinator.ledger_files import make_up_ledger_files, write_ledger_files
from tapestry_coordinator.ledgering import entry_of_member, ledger_origin
from tapestry_coordinator.receiving import Receiving
from tapestry_coordinator.registry import Registry
from tests.coordinator.small import FOUNDED_AT, Small, arriving, found_small
from tests.coordinator.test_registry import contribution, digest, statement
from tests.core.ledgers import KEY, ORIGIN, PUBLIC

RULES = RoundRules(quorum=2, gather_seconds=1.5, grace_seconds=30, deadline_seconds=100, total=0)
OPENED = Tick(ready=("a", "b"), enrolled=2, rules=RULES)


def seal(size: int, root: bytes) -> str:
    return sign_head(Head(ORIGIN, size, root), KEY).body


@pytest.fixture
def registry(database: str) -> Iterator[Registry]:
    opened = Registry(database)
    yield opened
    opened.close()


def played(registry: Registry, number: int, *members: str) -> None:
    """One round, from plan to checkpoint."""
    name = f"plan {number}"
    registry.record_event(number, OPENED, now=1.0, plan=(1, digest(name), statement(name)))
    for member_id in members:
        part = contribution(member_id, number=number)
        event = Arrived(member_id=member_id, digest=part.digest)
        registry.record_event(number, event, now=2.0, contribution=arriving(part))
    name = f"manifest {number}"
    registry.record_event(
        number,
        Published(manifest=digest(name)),
        now=3.0,
        manifest=(digest(name), statement(name)),
        seal=seal,
    )


def told(registry: Registry) -> list[tuple[str, int, str]]:
    leaves = registry.ledger.entries(0, 1000)
    found = [read_entry(leaf, what="entry") for leaf in leaves]
    return [(entry.kind, entry.round, entry.member_id) for entry in found]


def test_what_is_recorded_is_in_the_ledger_under_a_head_of_its_own(registry: Registry) -> None:
    registry.add_genesis(digest("genesis"), statement("genesis"), seal)
    registry.add_invitation(b"t", member_id="a", now=0.0, expires_at=9.0)
    registry.enrol(b"t", member_id="a", signing_key=b"k" * 32, certificate_serial=1, now=1.0)
    played(registry, 1, "b", "a")
    registry.exclude(1, "b", kind="no weight", reason="alone", now=4.0)
    registry.exclude(1, "b", kind="no weight", reason="alone", now=5.0)
    assert told(registry) == [
        ("checkpoint", 0, ""),
        ("member", 0, "a"),
        ("plan", 1, ""),
        ("contribution", 1, "b"),
        ("contribution", 1, "a"),
        ("checkpoint", 1, ""),
        ("exclusion", 1, "b"),
    ]
    leaves = registry.ledger.entries(0, 99)
    newest = registry.ledger.head()
    assert newest is not None
    head = open_head(newest.note, origin=ORIGIN, public_key=PUBLIC, what="head").head
    assert (head.size, head.root) == (6, merkle_root(leaves[:6]))
    first = registry.ledger.head(1)
    assert first is not None
    assert first.size == 1
    growth = registry.ledger.growth(1, 6)
    assert verify_consistency(1, merkle_root(leaves[:1]), 6, head.root, growth.path)
    assert verify_inclusion(leaves[3], 3, 6, registry.ledger.path(3, 6), head.root)
    assert registry.ledger.index_of(digest("manifest 1")) == 5
    for ask in (lambda: registry.ledger.growth(1, 7), lambda: registry.ledger.path(6, 7)):
        with pytest.raises(RejectedError, match="7 entries: the newest head of the ledger has 6"):
            ask()


def test_a_refused_transaction_leaves_no_entry(registry: Registry) -> None:
    registry.add_genesis(digest("genesis"), statement("genesis"), seal)

    def fails(_index: int) -> None:
        raise UnavailableError("the key is not there")

    part = Receiving(entry_of_member("a", b"k"), fails)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="the key is not there"):
        registry.record_event(1, OPENED, now=1.0, contribution=part)
    assert len(told(registry)) == 1
    with pytest.raises(UnavailableError, match="did not take the contribution"):
        _ = part.stored
    played(registry, 1, "a")
    assert [kind for kind, _round, _member in told(registry)] == [
        "checkpoint",
        "plan",
        "contribution",
        "checkpoint",
    ]


def test_a_coordinator_that_takes_over_goes_on_with_the_same_ledger(database: str) -> None:
    """The tree in memory follows what others wrote, and heads are the same to the bit."""
    with closing(Registry(database)) as one, closing(Registry(database)) as other:
        one.add_genesis(digest("genesis"), statement("genesis"), seal)
        played(one, 1, "a", "b")
        played(other, 2, "b")
        with pytest.raises(ZeroDivisionError), one.ledger.recording() as connection:
            one.ledger.append(connection, entry_of_member("x", b"x"))
            _ = 1 // 0
        played(one, 3, "a")
        played(other, 4, "c", "b", "a")
        leaves = one.ledger.entries(0, 99)
        heads = [one.ledger.head(), other.ledger.head()]
    assert heads[0] == heads[1]
    assert heads[0] is not None
    assert heads[0].note == seal(len(leaves), merkle_root(leaves))


def test_a_tree_that_is_not_the_databases_is_made_again(database: str) -> None:
    """As when the last commit was refused without a word, and somebody else led meanwhile."""
    with closing(Registry(database)) as one, closing(Registry(database)) as other:
        one.add_genesis(digest("genesis"), statement("genesis"), seal)
        with one.ledger.recording() as connection:
            one.ledger.append(connection, entry_of_member("x", b"x"))
            connection.rollback()  # the tree keeps what the database does not have
        other.ledger.entries(0, 9)
        played(other, 1, "a")
        played(one, 2, "a")
        head = one.ledger.head()
        leaves = one.ledger.entries(0, 99)
    assert head is not None
    assert head.note == seal(len(leaves), merkle_root(leaves))


PAST = {
    "manifests": f"(0, '{'0' * 64}', '{{}}'), (1, '{'1' * 64}', '{{}}')",
    "plans": f"(1, 1, '{'2' * 64}', '{{}}'), (1, 2, '{'3' * 64}', ''), (2, 1, '{'4' * 64}', '')",
    "contributions": "(1, 'b', 'cb', '{}', '{}', 1.0, 1), (1, 'a', 'ca', '{}', '{}', 1.0, 1)",
    "exclusions (round, member_id, kind, reason, at)": "(1, 'c', 'refused', 'NaN', 5.0)",
    "members (member_id, signing_key, certificate_serial, previous_serial, status, joined_at, "
    "last_seen_at)": "('a', 'aabb', '1', '', 'active', 1, 1)",
}
"""What a database had before there was a ledger."""


def test_an_older_database_has_its_past_in_the_ledger(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    migrations = Path(tapestry_coordinator.__path__[0]) / "migrations"
    config = Config()
    config.set_main_option("script_location", str(migrations))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for table, rows in PAST.items():
            connection.execute(text(f"INSERT INTO {table} VALUES {rows}"))  # noqa: S608
    engine.dispose()
    with closing(Registry(url)) as registry:
        leaves = [json.loads(leaf) for leaf in registry.ledger.entries(0, 99)]
        assert registry.ledger.head() is None
        registry.ledger.have_head(seal)
        registry.ledger.have_head(seal)
        head = registry.ledger.head()
    assert head is not None
    assert head.size == 9
    assert [(one["kind"], one["round"], one.get("member_id", "")) for one in leaves] == [
        ("checkpoint", 0, ""),
        ("member", 0, "a"),
        ("plan", 1, ""),
        ("plan", 1, ""),
        ("contribution", 1, "a"),
        ("contribution", 1, "b"),
        ("exclusion", 1, "c"),
        ("checkpoint", 1, ""),
        ("plan", 2, ""),
    ]
    assert leaves[1]["payload_digest"] == hashlib.sha256(b"\xaa\xbb").hexdigest()
    said = '{"kind":"refused","member_id":"c","reason":"NaN","round":1}'
    assert leaves[6]["payload_digest"] == hashlib.sha256(said.encode()).hexdigest()


# Files


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return found_small(tmp_path / "fed", elements=3)


def test_a_mirror_is_made_again_from_the_database(small: Small) -> None:
    with closing(Registry(database_url(small.home))) as registry:
        genesis = small.home.load_genesis()
        Desk(small.home, small.home.load_settings(), registry, small.key, clock=lambda: FOUNDED_AT)
        make_up_ledger_files(small.home, registry, genesis)
        mirror = small.home.ledger
        origin, key = ledger_origin(genesis), genesis.coordinator_key
        stored = mirror.read(origin=origin, public_key=key)
        assert (len(stored.entries), mirror.require_tiles(stored)) == (1, 1)
        assert (mirror.path / GENESIS_FILE).read_bytes() == (
            small.home.checkpoint(0) / "tapestry/manifest.json"
        ).read_bytes()
        (mirror.path / "tile/0/000.p/1").unlink()
        mirror.head_file.unlink()
        make_up_ledger_files(small.home, registry, genesis)
        assert mirror.require_tiles(mirror.read(origin=origin, public_key=key)) == 1


def test_a_checkpoint_carries_its_proof_and_still_verifies(small: Small) -> None:
    with closing(Registry(database_url(small.home))) as registry:
        genesis = small.home.load_genesis()
        write_ledger_files(small.home, registry, genesis, 0)
        folder = small.home.checkpoint(0)
        found = verify_ledger_proof(
            (folder / PROOF_FILE).read_bytes(),
            manifest_digest=genesis.genesis_digest,
            round_number=0,
            coordinator_key=genesis.coordinator_key,
            origin=ledger_origin(genesis),
            witnesses={},
            quorum=0,
        )
        assert (found.index, found.head.head.size) == (0, 1)
        assert verify_checkpoint(folder).genesis_digest == genesis.genesis_digest


def test_nothing_else_is_seen_in_a_checkpoint_while_its_proof_is_written(small: Small) -> None:
    """Whoever verifies a published checkpoint in that moment would refuse the unknown file."""
    with closing(Registry(database_url(small.home))) as registry:
        genesis = small.home.load_genesis()
        folder = small.home.checkpoint(0)
        write_ledger_files(small.home, registry, genesis, 0)
        expected = {path.name for path in folder.rglob("*")}
        seen: set[str] = set()
        written = Event()

        def look() -> None:
            while not written.is_set():
                seen.update(path.name for path in (folder / "tapestry").iterdir())

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            for _ in range(50):
                write_ledger_files(small.home, registry, genesis, 0)
            written.set()
            looking.result()
        assert seen
        assert seen <= expected


def test_what_a_killed_coordinator_left_beside_a_proof_is_removed(small: Small) -> None:
    with closing(Registry(database_url(small.home))) as registry:
        genesis = small.home.load_genesis()
        left = small.home.checkpoint(0) / "tapestry/.ledger.json.0123abcd.part"
        left.write_bytes(b"half")
        with pytest.raises(UntrustedError, match="not a file of this checkpoint"):
            verify_checkpoint(small.home.checkpoint(0))
        make_up_ledger_files(small.home, registry, genesis)
        assert verify_checkpoint(small.home.checkpoint(0)).genesis_digest == genesis.genesis_digest
