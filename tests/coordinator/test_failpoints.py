"""Failpoints: only what was asked for happens, once, and never without the flag."""

import errno

import pytest
from typer.testing import CliRunner

from tapestry.errors import ConfigError
from tapestry_coordinator.commands import app
from tapestry_coordinator.failpoints import VARIABLE, Failpoint, Failpoints, observed, reach


def test_a_moment_acts_at_its_count_and_only_then() -> None:
    points = Failpoints([Failpoint.parsed("fragment-stored@2:enospc")])
    with observed(points):
        reach("fragment-stored")
        reach("round-closed")
        with pytest.raises(OSError, match="No space left") as raised:
            reach("fragment-stored")
        reach("fragment-stored")
    assert raised.value.errno == errno.ENOSPC
    broken = Failpoints([Failpoint.parsed("round-closed:eio")])
    with observed(broken), pytest.raises(OSError, match="Input/output"):
        reach("round-closed")
    reach("round-closed")  # nobody observes any more


def test_killing_at_the_first_time_is_what_a_name_alone_means() -> None:
    assert Failpoint.parsed("round-closed") == Failpoint("round-closed", 1, "kill")
    assert Failpoint.parsed("round-closed@3:sleep") == Failpoint("round-closed", 3, "sleep")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round-clozed", r"no moment 'round-clozed'; there are: event-uncommitted, .*round-closed"),
        ("round-closed:explode", "no action 'explode'; there are: kill, sleep, enospc, eio"),
        ("round-closed@0", "'0' is no count: expected round-closed@1 or higher"),
        ("round-closed@x", "'x' is no count"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Failpoint.parsed(text)


def test_a_process_asked_for_an_unknown_moment_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "nonsense")
    result = CliRunner().invoke(app, ["serve", "/nonexistent", "--failpoints"])
    assert isinstance(result.exception, ConfigError)
    assert "no moment 'nonsense'" in str(result.exception)


def test_operators_are_not_shown_the_flag() -> None:
    assert "failpoint" not in CliRunner().invoke(app, ["serve", "--help"]).output.lower()
