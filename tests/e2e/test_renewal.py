"""Certificates are renewed while real processes serve and train: the coordinator's and members'.

The coordinator's process sees a clock that is 300 days behind until the test sets it right; TLS and
members see the real one. So its certificates have 98 days left when 300 have gone by at once.
"""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tapestry.identity.certificates import certificate_ends
from tapestry_coordinator import settings as settings_module
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

_BEHIND = """
import os, pathlib, time
_real, _days = time.time, pathlib.Path(os.environ["DAYS_BEHIND"])
time.time = lambda: _real() - 86400 * float(_days.read_text())
"""


def days_left(port: int) -> int:
    """Return for how long the certificate is good that a port shows to whoever connects."""
    shown = ssl.get_server_certificate(("127.0.0.1", port), timeout=20.0)
    return (certificate_ends(shown.encode()) - datetime.now(UTC)).days


def test_a_round_is_made_over_the_renewal_of_every_certificate(live: Live, tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_BEHIND)
    behind, forks = tmp_path / "days", live.forks
    behind.write_text("300")
    live.forks = None
    live.environment = {"PYTHONPATH": str(tmp_path / "hook"), "DAYS_BEHIND": str(behind)}
    live.found(rounds=1)
    settings = live.home.load_settings()
    table = settings.membership.model_copy(update={"certificate_days": 398})
    settings_module.save(live.home.folder, settings.model_copy(update={"membership": table}))
    live.serve()
    live.forks, live.environment = forks, {}
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
    assert {days_left(port) for port in (live.port, live.port + 1)} == {97}

    live.run_node("a-lib")  # connected before, and over what comes
    live.wait(lambda: "member certificate renewed" in live.log("a-lib"))
    behind.write_text("0")
    live.wait(lambda: {days_left(port) for port in (live.port, live.port + 1)} == {397})
    live.run_node("b-lib")
    for member in ("a-lib", "b-lib"):
        live.wait_done(member)
        home = NodeHome(live.folder / member)
        assert home.identity.validity()[1] - datetime.now(UTC) > timedelta(days=396)
        assert home.load_state().contributed == 1
        assert "member certificate renewed" in live.log(member)
    assert live.log("coordinator").count("the certificate was renewed, until") == 1
    assert live.status()["round"] == 2
