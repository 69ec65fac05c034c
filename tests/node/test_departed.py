"""What left, added up: a long ledger is verified once, and no change of it is overlooked."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tapestry.wire.egress import BLOCKED, EgressLedger
from tapestry_node.departed import Departed, Left

NOON = 1_780_012_800.0
DAY = 86_400.0
CALL = "/tapestry.v1.TransferService/PutFragment"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egress.jsonl"


def write(path: Path, count: int, *, call: str = CALL, at: float = NOON) -> None:
    with closing(EgressLedger(path, to="coordinator:7443", clock=lambda: at)) as ledger:
        for number in range(count):
            ledger.record(call, b"x" * (number + 1))


def look(path: Path, *, now: float = NOON) -> Left:
    """Look as a command does that has just been started."""
    return Departed(path, path.with_name("seen.json"), mark_lines=4).look(now=now)


def without_mark(path: Path, *, now: float = NOON) -> Left:
    return Departed(path, path.with_name("none.json"), mark_lines=2**40).look(now=now)


def test_a_later_look_finds_what_one_without_a_mark_finds(path: Path) -> None:
    assert look(path) == without_mark(path), "nothing has left yet"
    for count, day in ((3, 0), (5, 0), (2, 1), (30, 1)):
        write(path, count, at=NOON + day * DAY)
        write(path, 1, call=BLOCKED + "socket.connect", at=NOON + day * DAY)
        assert look(path, now=NOON + day * DAY) == without_mark(path, now=NOON + day * DAY)
    mark = path.with_name("seen.json")
    assert mark.stat().st_mode & 0o777 == 0o600
    found = look(path, now=NOON + DAY)
    assert (found.requests, found.blocked, found.today_bytes) == (40, 4, 3 + 30 * 31 // 2)
    assert look(path, now=NOON + 2 * DAY).today == {}


@pytest.mark.parametrize("line", [2, 9, 11])
def test_a_changed_line_is_named_whether_it_was_seen_before_or_not(path: Path, line: int) -> None:
    write(path, 9)
    assert look(path).chain == "whole"
    write(path, 3)
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = lines[line - 1].replace(b'"bytes":', b'"bytes":1')
    path.write_bytes(b"\n".join(lines))
    found = look(path)
    assert (found.chain, found.requests) == ("broken", line)
    assert found.problem == without_mark(path).problem
    assert f":{line + 1}: the chain is broken" in found.problem


def test_an_end_that_was_cut_off_or_written_anew_does_not_pass_for_whole(path: Path) -> None:
    write(path, 9)
    seen = look(path)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert without_mark(path).chain == "whole", "the chain alone does not show it"
    cut = look(path)
    assert cut.chain == "broken"
    assert f"saw 9 lines with the head {seen.head[:16]}" in cut.problem
    write(path, 6)  # another end
    assert "written anew" in look(path).problem
    path.unlink()
    assert "written anew" in look(path).problem
    path.with_name("seen.json").unlink()  # as the message says
    assert look(path).chain == "empty"
    path.write_bytes(whole)
    assert look(path) == replace(seen, chain="whole")


@pytest.mark.parametrize("mark", [b"", b"{}", b"[1]", b'{"lines": -1}', b"\xff" * 99])
def test_a_mark_that_cannot_be_read_costs_time_only(path: Path, mark: bytes) -> None:
    write(path, 9)
    path.with_name("seen.json").write_bytes(mark)
    assert look(path) == without_mark(path)
    assert look(path) == without_mark(path), "another one was written"
