"""What members do now: states, figures that mean something, and the file for the page."""

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapestry_coordinator.events import RoundRules
from tapestry_coordinator.live import Live, LiveFile, read_live
from tapestry_coordinator.round_state import Phase, RoundState

RULES = RoundRules(
    quorum=2, gather_seconds=10.0, grace_seconds=60.0, deadline_seconds=600.0, total=5
)
OPEN = RoundState(
    number=3,
    phase=Phase.OPEN,
    rules=RULES,
    cohort=("a", "b", "c", "d", "e"),
    opened_at=1000.0,
    deadline=1600.0,
)


def report(live: Live, member_id: str, *, number: int = 3, **said: Any) -> None:
    values = {"step": 4, "steps": 10, "loss": 2.5, "tokens_per_second": 100.0, **said}
    live.reported(member_id, round_number=number, now=1010.0, **values)


def table(live: Live, state: RoundState, *here: str) -> dict[str, Any]:
    return live.table(state, here=here, rules=RULES, refused={}, now=1020.0)


def test_each_member_is_in_one_state() -> None:
    live = Live(now=0.0)
    report(live, "a")
    report(live, "b")
    live.received("b", round_number=3, size=500, now=1011.0)
    report(live, "c", number=2)  # still of the round before
    state = RoundState(
        **{
            **{name: getattr(OPEN, name) for name in OPEN.__slots__},
            "arrived": {"d": "x"},
            "declined": {"e": "no"},
        }
    )
    shown = table(live, state, "a", "b", "c", "newcomer")
    states = {name: member["state"] for name, member in shown["members"].items()}
    assert states == {
        "a": "training",
        "b": "uploading",
        "c": "waiting",
        "d": "contributed",
        "e": "declined",
        "newcomer": "waiting",
    }
    assert (shown["uploads_in_flight"], shown["bytes_received"]) == (1, 500)
    assert table(live, state, "a")["members"]["b"]["state"] == "absent"


def test_a_new_round_begins_with_nothing_and_totals_go_on() -> None:
    live = Live(now=0.0)
    live.received("a", round_number=2, size=300, now=1.0)
    live.received("a", round_number=3, size=20, now=2.0)
    live.received("a", round_number=3, size=20, now=3.0)
    member = table(live, OPEN, "a")["members"]["a"]
    assert (member["bytes_round"], member["bytes_total"]) == (40, 340)


@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_a_figure_that_is_none_stays_out(wild: float) -> None:
    live = Live(now=0.0)
    report(live, "a", loss=wild, tokens_per_second=wild)
    member = table(live, OPEN, "a")["members"]["a"]
    assert member["tokens_per_second"] == 0.0
    assert member["loss"] in (None, -1.0)
    json.dumps(member, allow_nan=False)


def test_an_open_round_closes_at_grace_or_deadline() -> None:
    live = Live(now=0.0)
    assert table(live, OPEN)["closes_at"] == 1600.0
    with_quorum = RoundState(
        number=3, phase=Phase.OPEN, rules=RULES, deadline=1600.0, quorum_at=1100.0
    )
    assert table(live, with_quorum)["closes_at"] == 1160.0
    assert table(live, RoundState(number=3))["closes_at"] is None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_file_is_private_renewed_and_gone_after_an_orderly_stop(tmp_path: Path) -> None:
    path, beats = tmp_path / "live.json", []

    def beat() -> dict[str, Any]:
        beats.append(None)
        return {"format": 1, "beat": len(beats)}

    with LiveFile(path, beat, every_seconds=0.01):
        until(lambda: (read_live(path) or {}).get("beat", 0) > 2)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_live(path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_take_it_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "fed"
    with LiveFile(folder / "live.json", lambda: {"format": 1}, every_seconds=0.01):
        until(lambda: "the page does not see" in caplog.text)
        folder.mkdir()
        until(lambda: read_live(folder / "live.json") is not None)
    assert caplog.text.count("the page does not see") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "{"])
def test_what_is_no_live_state_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "live.json"
    path.write_text(text)
    assert read_live(path) is None
