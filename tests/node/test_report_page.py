"""The exported report in a real browser, as a regulator opens it: a file, on a desk or a phone."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tapestry.identity.certificates import create_authority
from tapestry.wire.egress import EgressLedger
from tapestry_node.home import NodeHome
from tapestry_node.keeping import keep_policy
from tapestry_node.policy import Policy
from tapestry_node.reporting import export
from tests.browsing import HOSTILE, launched, needs_browser, opened
from tests.members import joined_member

pytestmark = [
    pytest.mark.slow,
    needs_browser,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
browser = pytest.fixture(scope="module")(launched)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with leakage figures; others' words in it are hostile."""
    folder = tmp_path_factory.mktemp("report")
    home: NodeHome = joined_member(
        folder / "node", create_authority("loom", now=NOW), member_id="fr-bnf", issued=NOW
    )
    policy = Policy()
    keep_policy(home, policy)
    with closing(EgressLedger(home.egress, to=f"{HOSTILE}:7443", clock=NOW.timestamp)) as ledger:
        ledger.allowed_by = f"{policy.digest()} approved by {HOSTILE}"
        for size in (7, 4_000_000):
            ledger.record(
                "/tapestry.v1.TransferService/PutFragment", b"x" * size, round_number=size % 5
            )
    export(
        home,
        folder / "report",
        home.identity.signing_key(),
        head=None,
        now=NOW.timestamp(),
        leakage={"round": 3, "words": [f"the contribution to round 3 {HOSTILE}"]},
    )
    return folder / "report"


@pytest.mark.parametrize("width", [1280, 390])
def test_it_says_all_without_scrolling_sideways_and_asks_nobody(
    browser: Browser, report: Path, width: int
) -> None:
    address = (report / "report.html").as_uri()
    with opened(browser, address, viewport={"width": width, "height": 844}) as (page, problems):
        assert page.evaluate("document.documentElement.scrollWidth") == width
        text = page.inner_text("body")
        assert "a part of the parameter vector: what training has changed" in text
        assert f"the contribution to round 3 {HOSTILE}" in text
        assert "4 MB" in page.content()
        assert page.title() == "What left fr-bnf"  # the hostile words ran nothing
        assert problems == []
