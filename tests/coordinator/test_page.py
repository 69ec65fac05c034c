"""What the page is made of: sentences, markup, history, verification, downloads, the password."""

import io
import stat
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, UnavailableError
from tapestry.web.frames import thinned
from tapestry.web.markup import ago, in_bytes, lasting, said, table, tag
from tapestry_coordinator.database import database_url, open_to_read, transaction
from tapestry_coordinator.events import Published, RoundRules
from tapestry_coordinator.live import Live
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase, RoundState
from tapestry_coordinator.tables import members
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_coordinator.web import sections
from tapestry_coordinator.web.downloads import Archive
from tapestry_coordinator.web.history import History
from tapestry_coordinator.web.measured import Measured
from tapestry_coordinator.web.passwords import (
    FAILURES_OF_ONE,
    WINDOW_SECONDS,
    Guesses,
    Password,
    password_file,
    require_safe,
    session_secret,
    set_password,
)
from tapestry_coordinator.web.settings import PageSettings
from tapestry_coordinator.web.story import story_of
from tapestry_coordinator.web.verifying import Verifier
from tests.coordinator.small import FOUNDED_AT, Small, arriving, forget_stores, found_small

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
let_go = pytest.fixture(scope="module", autouse=True)(forget_stores)

RULES = RoundRules(
    quorum=2, gather_seconds=10.0, grace_seconds=60.0, deadline_seconds=600.0, total=5
)
HOSTILE = "<script>alert(1)</script>\"'&"


# The sentence at the top


def live_of(here: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    state = RoundState(**{"number": 3, "rules": RULES, **changes})
    return Live(now=0.0).table(state, here=here, rules=RULES, refused={}, now=1000.0)


OPEN = {"phase": Phase.OPEN, "cohort": ("a", "b", "c"), "opened_at": 900.0, "deadline": 1500.0}


@pytest.mark.parametrize(
    ("live", "tone", "title", "detail"),
    [
        (None, "bad", "The coordinator is not running.", "takes up where it was"),
        (live_of(), "warn", "Waiting for members: 0 of the 2 that round 3 needs are here.", ""),
        (
            live_of(("a",)),
            "idle",
            "Waiting for members: 1 of the 2 that round 3 needs is here.",
            "",
        ),
        (
            live_of(("a", "b", "c"), **OPEN, arrived={"a": "x"}),
            "good",
            "Round 3 of 5 is open: 1 of 3 members has contributed.",
            "2 waiting. It closes in 8 min at the latest, needs 2 contributions.",
        ),
        (
            live_of(("a",), **OPEN),
            "warn",
            "Round 3 of 5 is open: 0 of 3 members have contributed.",
            "1 waiting, 2 absent.",
        ),
        (
            live_of(("a",), phase=Phase.AGGREGATING, arrived={"a": "x", "b": "y"}),
            "busy",
            "Round 3 is being combined from 2 contributions.",
            "",
        ),
        (
            live_of(number=6, phase=Phase.FINISHED),
            "good",
            "All 5 rounds are done.",
            "Raise `total`",
        ),
        ({**live_of(), "paused": "disk"}, "warn", "Rounds are paused; 3 is next.", "disk. `tap"),
    ],
)
def test_the_state_is_told_in_one_sentence(
    live: dict[str, Any] | None, tone: str, title: str, detail: str
) -> None:
    story = story_of(live, members=3, database_error="", now=1001.0)
    assert (story.tone, story.title) == (tone, title)
    assert detail in story.detail


def test_silence_an_empty_federation_and_a_lost_database_come_first() -> None:
    live = live_of(("a",), **OPEN)
    silent = story_of(live, members=3, database_error="", now=1042.0)
    assert silent.title == "The coordinator has been silent for 40 s."
    assert story_of(live, members=0, database_error="", now=1001.0).title.startswith("No instit")
    ending = {**live, "ends": {"certificate": 1001.0 + 3 * 86_400, "root": 9e9}}
    told = story_of(ending, members=3, database_error="", now=1001.0)
    assert (told.tone, told.title) == ("bad", "The coordinator's certificate ends in 3 days.")
    assert story_of(ending, members=3, database_error="", now=1001.0 - 12 * 86_400).tone != "bad"
    lost = story_of(live, members=3, database_error="locked", now=1001.0)
    assert (lost.tone, lost.title) == ("bad", "The database does not answer.")


# Markup


class Parsed(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.titles: list[str | None] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=40)
@given(st.text(), st.text())
@example(HOSTILE, "</bdi><img src=x onerror=alert(1)>")
def test_text_is_never_markup(text: str, name: str) -> None:
    parsed = Parsed(tag("td", text, said(name), title=text))
    assert (parsed.tags, parsed.titles, parsed.text) == (["td", "bdi"], [text], text + name)


def test_a_table_names_its_columns_again_for_narrow_windows() -> None:
    made = table("Things", ("Name", "Size"), [("x", HOSTILE)])
    assert (
        '<td data-label="Size">&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;</td>' in made
    )
    assert "<caption>Things</caption>" in made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (44, "40 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 days")],
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert lasting(seconds) == text
    assert ago(seconds) == ("just now" if seconds < 15 else f"{text} ago")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB"), (2e15, "2000 TB")],
)
def test_sizes_have_decimal_units(size: float, text: str) -> None:
    assert in_bytes(size) == text


def test_lines_are_thinned_and_keep_their_ends() -> None:
    points = [(n, float(n)) for n in range(1000)]
    fewer = thinned(points, 160)
    assert (len(fewer), fewer[0], fewer[-1]) == (160, points[0], points[-1])
    assert thinned(points[:5], 160) == points[:5]


# History


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return found_small(tmp_path / "fed")


@pytest.fixture
def registry(small: Small) -> Iterator[Registry]:
    registry = Registry(database_url(small.home))
    yield registry
    registry.close()


@pytest.fixture
def history(small: Small, registry: Registry) -> Iterator[History]:
    assert registry.newest_round() == 0
    engine = open_to_read(database_url(small.home))
    yield History(engine)
    engine.dispose()


def publish(small: Small, registry: Registry, deltas: dict[str, list[float]], **how: Any) -> str:
    """Publish a round and record it as the desk does."""
    closed = small.closed(deltas, **how)
    envelope = small.publisher.publish(closed)
    digest = payload_digest(envelope)
    for stored in closed.contributions:
        registry.record_event(
            closed.plan.round,
            Published(manifest=digest),
            now=FOUNDED_AT,
            contribution=arriving(stored),
        )
    registry.record_event(
        closed.plan.round,
        Published(manifest=digest),
        now=FOUNDED_AT,
        manifest=(digest, envelope),
    )
    return digest


def measure(registry: Registry, number: int, member_id: str, bits: float, *, now: float) -> None:
    registry.add_evaluation(
        StoredEvaluation(
            round=number,
            member_id=member_id,
            language="eus",
            bits_per_byte=bits,
            held_out_bytes=1000,
        ),
        now=now,
    )


def test_the_history_is_read_once_and_then_what_is_new(
    small: Small, registry: Registry, history: History
) -> None:
    assert not history.refresh()
    assert [r.number for r in history.rounds] == [0]
    version = history.version
    history.refresh()
    assert history.version == version
    digest = publish(
        small,
        registry,
        {"a": [1.0, 0.0], "b": [0.0, 1.0]},
        silent=("c",),
        declined={"d": "not that model"},
    )
    history.refresh()
    newest = history.newest
    assert newest is not None
    assert (newest.number, newest.digest) == (1, digest)
    assert newest.parent == history.rounds[0].digest
    assert newest.weights == {"a": 0.5, "b": 0.5}
    told = [(note.member_id, note.kind, note.reason) for note in history.notes()]
    assert told == [
        ("c", "absent", "no contribution before the round closed"),
        ("d", "absent", "not that model"),
    ]


def test_a_language_that_got_worse_than_the_policy_accepts_is_on_the_record(
    small: Small, registry: Registry, history: History
) -> None:
    publish(small, registry, {"a": [1.0, 0.0], "b": [0.0, 1.0]})
    measure(registry, 0, "a", 2.0, now=1.0)
    measure(registry, 0, "b", 2.0, now=1.0)
    measure(registry, 1, "a", 2.01, now=2.0)  # within the 0.02 that the policy accepts
    measure(registry, 1, "b", 2.05, now=2.0)
    history.refresh()
    (note,) = history.notes()
    assert (note.member_id, note.kind) == ("b", "dissent")
    assert note.reason.startswith("eus: 0.0500 bits per byte worse")
    measure(registry, 1, "b", 1.9, now=3.0)  # measured again
    history.refresh()
    assert history.notes() == []
    assert history.means() == {0: 2.0, 1: pytest.approx((2.01 + 1.9) / 2)}


def test_the_mean_of_a_language_is_by_bytes() -> None:
    class Row:
        language, at = "eus", 1.0

        def __init__(self, member_id: str, bits: float, size: int) -> None:
            self.round, self.member_id = 1, member_id
            self.bits_per_byte, self.held_out_bytes = bits, size

    measured = Measured()
    assert measured.take([Row("a", 1.0, 100), Row("b", 2.0, 300)])
    assert not measured.take([Row("a", 1.0, 100)])
    (language,) = measured.languages()
    assert (language.members, language.by_round) == (2, {1: 1.75})


def test_the_page_cannot_write(small: Small, registry: Registry) -> None:
    assert registry.newest_round() == 0
    engine = open_to_read(database_url(small.home))
    row = {
        "member_id": "x", "signing_key": "", "certificate_serial": "", "previous_serial": "",
        "status": "active", "joined_at": 0.0, "last_seen_at": 0.0,
    }  # fmt: skip
    with (
        pytest.raises(UnavailableError, match="readonly"),
        transaction(engine) as connection,
    ):
        connection.execute(insert(members).values(row))
    engine.dispose()


def test_hostile_words_are_shown_as_words(small: Small, history: History) -> None:
    assert small.home.folder.is_dir()
    history.refresh()
    shown = sections.record([], {"a": HOSTILE}, 1)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


# Verification and download


def test_a_checkpoint_is_verified_once_and_damage_is_named(
    small: Small, registry: Registry, history: History
) -> None:
    publish(small, registry, {"a": [1.0, 0.0], "b": [0.0, 1.0]})
    history.refresh()
    verifier = Verifier(small.home, lambda: history.rounds, clock=lambda: 5.0)
    newest = verifier.next()
    assert newest is not None
    assert newest.number == 1
    assert verifier.verify(newest).error == ""
    again = Verifier(small.home, lambda: history.rounds, clock=lambda: 6.0)
    assert again.outcome(newest.digest) == verifier.outcome(newest.digest)
    genesis = again.next()
    assert genesis is not None
    assert genesis.number == 0
    path = small.home.checkpoint(0) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert f"{MODEL_FILE}: changed" in again.verify(genesis).error
    assert again.next() is None
    assert stat.S_IMODE((small.home.page / "verified.json").stat().st_mode) == 0o600


def test_a_download_is_the_checkpoint(small: Small, registry: Registry, tmp_path: Path) -> None:
    publish(small, registry, {"a": [1.0, 0.0], "b": [0.0, 1.0]})
    archive = Archive(small.home.checkpoint(1))
    size = archive.size_bytes
    content = b"".join(archive.chunks())
    assert len(content) == size
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        opened.extractall(tmp_path, filter="data")
    assert verify_checkpoint(tmp_path / "round-000001").manifest.round == 1


# The password


def test_a_password_is_kept_as_a_private_digest(small: Small) -> None:
    password = Password(small.home)
    assert not password.is_set
    set_password(small.home, "four words of mine")
    path = password_file(small.home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"four" not in path.read_bytes()
    assert password.matches("four words of mine")
    assert not password.matches("four words of yours")
    mark = password.mark
    set_password(small.home, "four words of mine")
    assert password.mark != mark  # sessions end, whatever the new one is


def test_a_short_password_is_refused(small: Small) -> None:
    with pytest.raises(ConfigError, match="has 5 characters: take 12"):
        set_password(small.home, "short")
    assert not password_file(small.home).exists()


def test_guessing_is_slowed_down_for_who_guesses() -> None:
    guesses = Guesses()
    for at in range(FAILURES_OF_ONE):
        assert guesses.wait_seconds("mallory", now=float(at)) == 0
        guesses.failed("mallory", now=float(at))
    assert guesses.wait_seconds("mallory", now=10.0) == WINDOW_SECONDS - 10.0
    assert guesses.wait_seconds("alice", now=10.0) == 0
    assert guesses.wait_seconds("mallory", now=WINDOW_SECONDS + 1) == 0


def test_the_session_secret_is_private_and_stays(small: Small) -> None:
    secret = session_secret(small.home)
    assert secret == session_secret(small.home)
    assert len(secret) == 64
    assert stat.S_IMODE((small.home.page / "session.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "wanted",
    [
        PageSettings(listen="0.0.0.0:7445"),
        PageSettings(listen="fed.example.org:7445"),
        PageSettings(behind_proxy=True),
    ],
)
def test_a_page_that_others_reach_needs_a_password(small: Small, wanted: PageSettings) -> None:
    with pytest.raises(ConfigError, match="tapestry coordinator page-password"):
        require_safe(wanted, Password(small.home))
    set_password(small.home, "four words of mine")
    require_safe(wanted, Password(small.home))


def test_only_loopback_goes_without_tls_and_password() -> None:
    here = PageSettings()
    assert (here.needs_password, here.speaks_tls) == (False, False)
    there = PageSettings(listen="[::]:7445")
    assert (there.needs_password, there.speaks_tls) == (True, True)
    proxied = PageSettings(behind_proxy=True)
    assert (proxied.needs_password, proxied.speaks_tls) == (True, False)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"listen": "7445"}, "expected host:port"),
        ({"certificate": "page.pem"}, "go together"),
        ({"certificate": "a", "key": "b", "behind_proxy": True}, "the proxy speaks TLS"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        PageSettings(**values)
