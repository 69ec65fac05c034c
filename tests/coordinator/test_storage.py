"""Where a coordinator keeps things: what it refuses, and what it says when that is in trouble."""

import logging
import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.config import parse_settings
from tapestry.errors import ConfigError, UnavailableError
from tapestry.storage.locks import alone
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import (
    database_url,
    open_database,
    shown_url,
    sqlite_url,
    transaction,
)
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.events import Arrived
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, StorageSettings
from tapestry_demo.federation import tapestry_command
from tests.coordinator.small import (
    FOUNDED_AT,
    FewNumbers,
    Small,
    arriving,
    found_small,
    settings_for,
)
from tests.servers import Postgres

EVERY_DATABASE = True

# Settings


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        ({"database": "mysql://a/b"}, r"database: 'mysql' is no .*write postgresql\+psycopg://"),
        ({"database": "postgresql://a/b"}, r"write postgresql\+psycopg://user@host/name"),
        ({"blobs": "bucket/prefix"}, r"blobs: 'bucket/prefix': write s3://bucket/prefix or"),
        ({"blobs": "file://host/x"}, r"write s3://bucket/prefix or file:///shared/folder"),
        ({"endpoint": "s3.example.org"}, r"endpoint: .*write https://host or host:port"),
        ({"endpoint": "http://s3.example.org"}, r"unprotected on the way: .*allow_plain_http"),
        ({"blob": "s3://b/p"}, r"blob: unknown key; did you mean blobs\?"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_one_that_can(
    table: dict[str, str], cause: str
) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_settings(table, StorageSettings, where="[storage]")


def test_a_refused_database_shows_no_password() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"database": "mysql://u:hush@h/n"}, StorageSettings, where="[storage]")
    assert "hush" not in str(caught.value)


def test_plain_http_is_for_this_machine_or_on_demand() -> None:
    StorageSettings(endpoint="http://localhost:9000")
    StorageSettings(endpoint="http://127.0.0.1:9000")
    StorageSettings(endpoint="http://s3.example.org", allow_plain_http=True)


def test_a_password_is_not_shown() -> None:
    for url in ("postgresql+psycopg://u:hush@h/n", "postgresql+psycopg://u@h/n?password=hush"):
        assert "hush" not in shown_url(url)
        assert "h/n" in shown_url(url)


def test_serve_can_be_told_other_places_than_the_file_says(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    assert database_url(small.home) == sqlite_url(small.home.folder)
    told = CoordinatorHome(small.home.folder, (("database", "postgresql+psycopg://h/n"),))
    assert database_url(told) == "postgresql+psycopg://h/n"
    assert told.load_settings().inner == small.home.load_settings().inner
    with pytest.raises(ConfigError, match=r"\[storage\]: database: 'oracle' is no database"):
        CoordinatorHome(small.home.folder, (("database", "oracle://"),)).load_settings()


# Founding


def test_a_federation_is_founded_in_a_database_and_a_store_once(
    tmp_path: Path, postgres: Postgres
) -> None:
    url, store = postgres.new_database(), tmp_path / "store"

    def shared(inner: InnerTable) -> CoordinatorSettings:
        storage = StorageSettings(database=url, blobs=store.as_uri())
        return settings_for(inner).model_copy(update={"storage": storage})

    founding = Founding(federation="loom", objective=FewNumbers(2), create={}, pool=[], seed=1)
    genesis = found(tmp_path / "fed", founding, shared, now=FOUNDED_AT)
    assert not (tmp_path / "fed" / "coordinator.db").exists()
    with closing(Registry(url)) as registry:
        assert list(registry.lineage()) == [genesis]
    (folder,) = (store / "published").iterdir()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert verify_checkpoint(copy).manifest.round == 0
    assert settings_module.load(tmp_path / "fed").storage.database == url
    mode = (tmp_path / "fed" / settings_module.SETTINGS_FILE).stat().st_mode
    assert mode & 0o777 == 0o600, "there is a password in it"
    with pytest.raises(ConfigError, match="has a genesis already"):
        found(tmp_path / "second", founding, shared, now=FOUNDED_AT)
    assert not (tmp_path / "second").exists(), "nothing is left behind"


# Trouble


def test_a_damaged_database_is_named_and_points_to_a_backup(tmp_path: Path) -> None:
    Registry(sqlite_url(tmp_path)).close()
    file = tmp_path / "coordinator.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'members'"
        ).fetchall()
    with file.open("r+b") as raw:
        for (page,) in pages:
            raw.seek(4096 * (page - 1))
            raw.write(b"\xff" * 4096)
    with closing(Registry(sqlite_url(tmp_path))) as registry:
        with pytest.raises(ConfigError, match=r"coordinator\.db: the database file is damaged; .*"):
            registry.require_sound()
        with pytest.raises(UnavailableError, match=r"file is damaged; .* restore a backup"):
            registry.members()


def test_a_sound_database_passes(database: str) -> None:
    with closing(Registry(database)) as registry:
        registry.require_sound()


def test_a_bug_in_a_statement_is_not_called_an_outage(postgres: Postgres) -> None:
    engine = open_database(postgres.new_database())
    with pytest.raises(ProgrammingError), transaction(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM nothing_of_that_name")
    engine.dispose()


def test_what_a_transaction_has_read_still_holds_when_it_writes(database: str) -> None:
    engine = open_database(database)
    barrier = threading.Barrier(4)

    def count() -> None:
        barrier.wait()
        for _time in range(10):
            with transaction(engine) as connection:
                read = connection.exec_driver_sql("SELECT number FROM counted").scalar_one()
                connection.execute(text("UPDATE counted SET number = :n"), {"n": read + 1})

    with transaction(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE counted (number INTEGER)")
        connection.exec_driver_sql("INSERT INTO counted VALUES (0)")
    threads = [threading.Thread(target=count) for _thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction(engine) as connection:
        assert connection.exec_driver_sql("SELECT number FROM counted").scalar_one() == 40
    engine.dispose()


def test_a_server_that_is_gone_is_told_to_members_without_its_name(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    with closing(Registry(url)) as registry:
        registry.members()
        postgres.stop()
        try:
            with (
                caplog.at_level(logging.WARNING),
                pytest.raises(UnavailableError, match="everything goes on when it does") as caught,
            ):
                registry.members()
            with pytest.raises(UnavailableError):
                Registry(url)
        finally:
            postgres.start()
        assert registry.members() == []
    assert "127.0.0.1" not in str(caught.value)
    assert "127.0.0.1" in caplog.text, "the operator's log says which server"
    assert postgres.password not in caplog.text


class Undecided(Registry):
    """A registry whose database takes an event, and is gone before it says so."""

    breaks = False

    def record_event(self, *arguments: object, **more: object) -> None:
        super().record_event(*arguments, **more)  # type: ignore[arg-type]
        if self.breaks:
            self.breaks = False
            raise UnavailableError("the connection broke")


def quick(folder: Path, database: str = "") -> Small:
    rounds = settings_module.RoundsSettings(quorum=1, gather_seconds=0.0, grace_seconds=0.0)
    return found_small(folder, rounds=rounds, learning_rate=0.5, database=database)


def test_events_that_the_database_took_without_saying_so_are_not_recorded_twice(
    tmp_path: Path, registry_at: str
) -> None:
    small = quick(tmp_path / "fed", registry_at)
    registry = Undecided(database_url(small.home))
    secret = b"s" * 32
    registry.add_invitation(secret, member_id="a", now=0.0, expires_at=1.0)
    registry.enrol(secret, member_id="a", signing_key=b"k" * 32, certificate_serial=1, now=0.0)
    desk = Desk(
        small.home, small.home.load_settings(), registry, small.key, clock=lambda: FOUNDED_AT
    )
    registry.breaks = True
    with pytest.raises(UnavailableError), desk.present("a"):
        pytest.fail("the round opened, and nobody knows")
    assert desk.here() == [], "who could not be told is not connected"
    desk.pass_time()
    assert desk.state.phase is Phase.OPEN

    signed = registry.plan(1, 1)
    assert signed is not None
    stored = small.contributed(
        RoundPlan.parsed(signed.payload, what="plan"), "a", np.array([0.5, 0.25], np.float32)
    )
    registry.record_event(1, _arrived(stored.digest), now=FOUNDED_AT, contribution=arriving(stored))
    desk = Desk(
        small.home, small.home.load_settings(), registry, small.key, clock=lambda: FOUNDED_AT
    )
    assert desk.state.phase is Phase.AGGREGATING
    manifest = small.publisher.publish(ClosedRound.recorded(registry, desk.state))
    desk.proofs.renew(lambda _number: None, before=FOUNDED_AT)
    registry.breaks = True
    with pytest.raises(UnavailableError):
        desk.publish(manifest)
    desk.publish(manifest)
    assert (registry.newest_round(), desk.state.number) == (1, 2)
    proved: list[int] = []
    desk.proofs.renew(proved.append, before=FOUNDED_AT)
    assert proved == [0, 1]
    assert len(registry.round_events(1)) == 3
    registry.close()


def _arrived(digest: str) -> Arrived:
    return Arrived(member_id="a", digest=digest)


@pytest.mark.slow
def test_a_second_coordinator_in_one_folder_is_refused(tmp_path: Path) -> None:
    small = quick(tmp_path / "fed")
    with alone(small.home.folder, who="the coordinator"):
        done = subprocess.run(
            tapestry_command("coordinator", "serve", str(small.home.folder)),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("the coordinator runs already in another process; stop that first")
