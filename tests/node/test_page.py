"""The node's local page in a real browser, served by its own process."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tapestry.identity.certificates import create_authority
from tapestry.storage.locks import alone
from tapestry.wire.egress import EgressLedger
from tapestry_demo.federation import tapestry_command
from tapestry_node.home import NodeHome, NodeState
from tapestry_node.policy import NodeSettings, Policy
from tapestry_node.progress import ProgressFile
from tests.browsing import HOSTILE, call, launched, needs_browser, opened, see
from tests.members import joined_member, spool_contribution

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
browser = pytest.fixture(scope="module")(launched)
NOW = datetime.now(UTC)
_WIDE = """[...document.querySelectorAll("*")].filter(
    one => one.getBoundingClientRect().right > 390 && !one.closest(".scroll, nav")
).map(one => one.outerHTML.slice(0, 200))"""


@dataclass
class Shown:
    """A node whose daemon is this process, and its page."""

    home: NodeHome
    progress: ProgressFile
    url: str
    token: str
    log: Path

    def train(self, steps: int) -> None:
        """Be so far in round 2."""
        for step in range(1, steps + 1):
            self.progress.step(2, step, 20, loss=5.0 - step / 10, speed=1234.0, tokens=64)
        self.progress.write("going on")
        self.progress.write("training")  # not held back for half a second


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("page")
    home = joined_member(
        folder / "node", create_authority("loom", now=NOW), member_id="fr-bnf", issued=NOW
    )
    home.save_settings(NodeSettings(policy=Policy(approval="manual")))
    home.save_state(NodeState(round=1, manifest="c" * 64, objective="causal-lm"))
    seconds = itertools.count()  # of each step
    progress = ProgressFile(
        home.progress, [], clock=NOW.timestamp, ticks=lambda: float(next(seconds))
    )
    progress.now.bits_per_byte = {"0": 5.0, "1": 4.5}
    progress.now.connected_since = NOW.timestamp()
    progress.write("waiting")
    log = folder / "page.log"
    command = tapestry_command("node", "page", str(home.folder), "--port", "0")
    with (
        alone(home.folder, who="this node"),
        log.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert "page: http" in first
            address = home.page_address.read_text().strip()
            url, _slash, token = address.partition("/?token=")
            yield Shown(home, progress, url, token, log)
            assert token not in first + log.read_text()
        finally:
            process.terminate()
            _out, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    assert not home.page_address.exists(), "the address is of no use any more"


def send(home: NodeHome, to: str) -> None:
    with closing(EgressLedger(home.egress, to=to, clock=NOW.timestamp)) as ledger:
        ledger.record("/tapestry.v1.RoundsService/Report", b"x" * 1234, round_number=2)


@needs_browser
def test_the_page_follows_the_node_and_shows_hostile_words_as_words(
    browser: Browser, shown: Shown
) -> None:
    with opened(browser, shown.url, path=f"/?token={shown.token}") as (page, problems):
        see(page, "h1", "Waiting")
        assert page.url == f"{shown.url}/", "the token does not stay in the address"
        page.evaluate("window.unreloaded = true")
        see(page, "#left", "Nothing has left this node yet.")
        shown.train(7)
        see(page, "h1", "Round 2: step 7 of 20")
        see(page, ".tile", "4.300")
        see(page, ".tile", "1\u202f234")
        for name in ("loss", "speed", "quality"):
            page.wait_for_function(
                f"document.querySelectorAll('#chart-{name} svg path').length > 1"
            )
        send(shown.home, HOSTILE)
        see(page, "#ledger td", HOSTILE)
        see(page, "#left tr", "RoundsService/Report")
        see(page, "#left .chip", "chain whole")
        see(page, "#policy tr", "min_inner_steps")
        shown.progress.write(HOSTILE)  # as a coordinator's notice may be
        see(page, "h1", HOSTILE)
        spool_contribution(shown.home)
        see(page, "#approval tr", "4,321")
        see(page, "#approval code", f"tapestry node approve {shown.home.folder}")
        assert page.locator("#approval button, #approval form").count() == 0
        shown.home.egress.write_bytes(shown.home.egress.read_bytes()[:-10])
        see(page, "#left .chip", "chain broken")
        assert page.evaluate("window.unreloaded") is True
        assert page.title() == "fr-bnf \u00b7 Tapestry"  # the hostile words ran nothing
        assert problems == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_shows_all_without_scrolling_sideways(
    browser: Browser, shown: Shown, scheme: str
) -> None:
    with opened(
        browser,
        shown.url,
        path=f"/?token={shown.token}",
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
    ) as (page, problems):
        page.wait_for_function("document.querySelectorAll('.chart svg').length === 3")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, page.evaluate(_WIDE)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert problems == []


def test_nobody_sees_it_without_the_token_of_this_run(shown: Shown) -> None:
    assert shown.home.page_address.stat().st_mode & 0o777 == 0o600
    many = "/?" + 50 * "token=%ff&"
    for path in ("/", "/?token=", "/?token=guess", many, "/_nicegui_ws/socket.io/", "/nowhere"):
        answer = call(shown.url + path)
        assert (answer.status, b"fr-bnf" in answer.body) == (401, False), path
    assert call(f"{shown.url}/?token={shown.token}", Host="stranger.example").status == 421
    assert call(f"{shown.url}/?token={shown.token}", Origin="http://stranger.example").status == 403
    entered = call(f"{shown.url}/?token={shown.token}")
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert shown.token not in cookie
    for attribute in ("httponly", "samesite=strict"):
        assert attribute in cookie.lower()
    cookie = cookie.partition(";")[0]
    answer = call(shown.url, Cookie=cookie)
    assert answer.status == 200
    assert b"fr-bnf" in answer.body, "the text needs no script"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert call(shown.url, Cookie=cookie[:-3] + "abc").status == 401
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    socket = f"{shown.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert call(socket, **upgrade).status in {401, 403}


def test_a_port_that_is_taken_is_one_line(shown: Shown) -> None:
    port = shown.url.rpartition(":")[2]
    done = subprocess.run(
        tapestry_command("node", "page", str(shown.home.folder), "--port", port),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "choose another --port" in done.stderr
    assert shown.home.page_address.exists(), "the first page's address stays"
    assert os.path.getsize(shown.log) == 0  # noqa: PTH202
