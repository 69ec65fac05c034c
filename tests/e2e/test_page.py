"""The web page in a real browser, served by its own process beside a real coordinator."""

import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser
from prometheus_client.parser import text_string_to_metric_families

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.v1 import rounds_pb2
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.live import LiveFile
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.web.passwords import FAILURES_OF_ONE
from tapestry_coordinator.web.settings import PageSettings
from tapestry_demo.federation import free_port_pair, tapestry_command
from tests.browsing import HOSTILE, call, launched, needs_browser, opened, see
from tests.coordinator.small import forget_stores, found_small
from tests.e2e.live import Live
from tests.wire.conftest import ROUNDS
from tests.wire.serving import CALL_SECONDS, Coordinator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
let_go = pytest.fixture(scope="module", autouse=True)(forget_stores)

browser = pytest.fixture(scope="module")(launched)
PASSWORD = "four words of mine"  # noqa: S105


@contextmanager
def page_process(home: CoordinatorHome, **changes: Any) -> Iterator[str]:
    """Serve the page; yield its address."""
    listen = f"127.0.0.1:{free_port_pair()}"
    table = PageSettings(listen=listen, **changes)
    settings = home.load_settings().model_copy(update={"page": table})
    settings_module.save(home.folder, settings)
    command = tapestry_command("coordinator", "page", str(home.folder))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "page: http" in process.stderr.readline()
            yield f"http://{listen}"
        finally:
            process.terminate()
            _out, said = process.communicate(timeout=20)
            assert process.returncode == 0, said
            assert "Traceback" not in said, said


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Watched:
    """A federation of two, with a hostile member, whose coordinator tells what happens."""

    def __init__(self, coordinator: Coordinator, url: str) -> None:
        self.coordinator = coordinator
        self.url = url
        self.live_file = LiveFile(coordinator.home.live, self.table, every_seconds=0.2)

    def table(self) -> dict[str, Any]:
        return self.coordinator.desk.live.table(
            self.coordinator.desk.state,
            here=self.coordinator.desk.here(),
            rules=self.coordinator.desk.settings.rounds.rules(),
            refused=self.coordinator.places.refused,
            now=time.time(),  # noqa: TID251
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    small = found_small(tmp_path_factory.mktemp("page") / "fed", rounds=ROUNDS)
    coordinator = Coordinator(small)
    with page_process(small.home) as url:
        watched = Watched(coordinator, url)
        watched.live_file.__enter__()
        yield watched
        watched.live_file.__exit__(None, None, None)
    coordinator.stop()


@needs_browser
def test_the_page_follows_a_round_without_reloading(browser: Browser, watched: Watched) -> None:
    coordinator = watched.coordinator
    with opened(browser, watched.url) as (page, problems):
        see(page, "h1", "No institution has joined yet.")
        page.evaluate("window.unreloaded = true")
        ada, bo = coordinator.join("ada"), coordinator.join("bo")
        with ada.connected() as line, bo.connected() as other:
            first, second = line.watch(), other.watch()
            plan = first.until_plan()
            see(page, "h1", "Round 1 is open: 0 of 2 members have contributed.")
            line.rounds.Report(
                rounds_pb2.ReportRequest(
                    round=1, step=3, steps=10, loss=1.5, tokens_per_second=80.0
                ),
                timeout=CALL_SECONDS,
            )
            see(page, "#round tr", "ada")
            see(page, "#round .chip", "training")
            see(page, "#round tr", "3 / 10")
            line.commit(line.sent(plan, np.float32([0.5, 0.25]), metrics={"loss_last": 1.5}))
            see(page, "h1", "1 of 2 members has contributed.")
            other.rounds.Decline(
                rounds_pb2.DeclineRequest(round=1, reason=HOSTILE), timeout=CALL_SECONDS
            )
            see(page, "#record td", HOSTILE)
            other.commit(other.sent(plan, np.float32([0.25, 0.5]), metrics={"loss_last": 1.7}))
            envelope = coordinator.aggregate()
            measure(line, envelope.payload, "eus")
            measure(other, envelope.payload, HOSTILE)
            see(page, "#checkpoints tr", "verified")
            see(page, "#languages tr", HOSTILE)
            page.wait_for_function("document.querySelectorAll('.chart svg').length === 3")
            see(page, "#members tr", "ada")
            first.end()
            second.end()
        assert page.evaluate("window.unreloaded") is True
        assert page.title() == "loom \u00b7 Tapestry"  # the hostile words ran nothing
        assert problems == []


def measure(line: Any, manifest: bytes, language: str) -> None:
    line.rounds.SubmitEvaluation(
        rounds_pb2.SubmitEvaluationRequest(
            manifest_digest=hashlib.sha256(manifest).digest(),
            bits_per_byte=2.0,
            held_out_bytes=1000,
            language=language,
        ),
        timeout=CALL_SECONDS,
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_without_scrolling_sideways(
    browser: Browser, watched: Watched, scheme: str
) -> None:
    with opened(
        browser, watched.url, viewport={"width": 390, "height": 844}, color_scheme=scheme
    ) as (page, problems):
        page.wait_for_function("document.querySelectorAll('.chart svg').length === 3")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        shown = page.evaluate("document.documentElement.dataset.theme")
        assert shown == scheme
        page.get_by_label("Light or dark").click()
        assert page.evaluate("document.documentElement.dataset.theme") != scheme
        assert problems == []


@needs_browser
def test_the_page_says_that_the_coordinator_is_gone(browser: Browser, watched: Watched) -> None:
    path = watched.coordinator.home.live
    with opened(browser, watched.url) as (page, _problems):
        watched.live_file.__exit__(None, None, None)
        assert not path.exists()
        see(page, "h1", "The coordinator is not running.")
        health = call(f"{watched.url}/healthz")
        assert health.status == 503
        assert json.loads(health.body)["reason"] == "the coordinator is not running"
        watched.live_file = LiveFile(path, watched.table, every_seconds=0.2)
        watched.live_file.__enter__()
        page.locator(".hero:not(.bad)").wait_for(timeout=60_000)


def test_programs_are_told_numbers_and_health(watched: Watched) -> None:
    until(lambda: call(f"{watched.url}/healthz").status == 200)
    text = call(f"{watched.url}/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["tapestry_up"].samples[0].value == 1
    assert families["tapestry_members_connected"].samples[0].value == 0
    phases = {s.labels["phase"]: s.value for s in families["tapestry_phase"].samples}
    assert phases == {phase.value: int(phase is Phase.WAITING) for phase in Phase}
    assert {"tapestry_round", "tapestry_refused_calls", "tapestry_received_bytes"} <= set(families)


def test_a_download_is_a_checkpoint_that_verifies(watched: Watched, tmp_path: Path) -> None:
    answer = call(f"{watched.url}/checkpoints/0.tar")
    assert int(answer.headers["content-length"]) == len(answer.body)
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as opened_tar:
        opened_tar.extractall(tmp_path, filter="data")
    assert verify_checkpoint(tmp_path / "round-000000").manifest.round == 0
    assert call(f"{watched.url}/checkpoints/77.tar").status == 404
    assert call(f"{watched.url}/checkpoints/..%2f.tar").status in {404, 422}


def test_strangers_names_and_sites_are_refused(watched: Watched) -> None:
    assert call(watched.url).status == 200
    assert call(watched.url, Host="stranger.example").status == 421
    assert call(watched.url, Origin="http://stranger.example").status == 403
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Origin": "http://stranger.example",
    }
    socket = f"{watched.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert call(socket, **upgrade).status == 403
    headers = call(watched.url).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers


def test_with_a_password_nothing_is_shown_before_it(tmp_path: Path) -> None:
    home = found_small(tmp_path / "fed").home
    set_by = subprocess.run(
        tapestry_command("coordinator", "page-password", "--dir", str(home.folder)),
        input=PASSWORD + "\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert set_by.returncode == 0, set_by.stderr
    with page_process(home, behind_proxy=True) as url:
        first = call(url)
        assert (first.status, first.headers["location"]) == (303, "/login")
        for path in ("/metrics", "/healthz", "/checkpoints/0.tar", "/_nicegui_ws/socket.io/"):
            assert call(url + path).status == 401, path
        right = {"password": PASSWORD}
        cookie_of = call(f"{url}/login", right)
        assert cookie_of.status == 303
        attributes = cookie_of.headers["set-cookie"].lower()
        for attribute in ("httponly", "samesite=strict", "secure"):
            assert attribute in attributes
        cookie = cookie_of.headers["set-cookie"].partition(";")[0]
        assert call(url, Cookie=cookie).status == 200
        assert call(f"{url}/metrics", Cookie=cookie).status == 200
        assert call(url, Cookie=cookie[:-3] + "abc").status == 303
        many = {f"field{number}": "x" for number in range(9)}
        assert call(f"{url}/login", many).status == 401
        for _ in range(FAILURES_OF_ONE - 1):
            assert call(f"{url}/login", {"password": HOSTILE}).status == 401
        assert call(f"{url}/login", right).status == 429
        ended = call(f"{url}/logout", {}, Cookie=cookie)
        assert ended.status == 303
        assert "tapestry_page=null" in ended.headers["set-cookie"]


def test_a_page_for_strangers_without_a_password_does_not_start(tmp_path: Path) -> None:
    home = found_small(tmp_path / "fed").home
    table = PageSettings(listen="0.0.0.0:7445")
    settings_module.save(home.folder, home.load_settings().model_copy(update={"page": table}))
    done = subprocess.run(
        tapestry_command("coordinator", "serve", str(home.folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "set one with `tapestry coordinator page-password`" in done.stderr


def test_the_page_lives_and_dies_with_the_coordinator(live: Live) -> None:
    live.found(rounds=1)
    listen = f"127.0.0.1:{free_port_pair()}"
    settings = live.home.load_settings()
    table = PageSettings(listen=listen)
    settings_module.save(live.home.folder, settings.model_copy(update={"page": table}))
    live.serve()
    health = f"http://{listen}/healthz"
    live.wait(lambda: answers(health) == 200)
    assert json.loads(call(health).body)["phase"] == "waiting"
    live.kill("coordinator")
    until(lambda: answers(health) is None)


def answers(url: str) -> int | None:
    try:
        return call(url).status
    except OSError:
        return None
