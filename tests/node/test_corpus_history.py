"""The record of which sources took part in which round: whole, or the line is named."""

import json
from pathlib import Path

import pytest

from tapestry.data.usage import RoundUse, SourceUse
from tapestry.errors import UntrustedError
from tapestry_node.corpus_history import (
    HISTORY_FILE,
    forgotten,
    read_history,
    record_contribution,
    record_forgotten,
    rounds_of,
)


def use(*names: str) -> RoundUse:
    sources = [SourceUse(name=n, category="open", documents=3, tokens=40) for n in names]
    return RoundUse(corpus="c" * 64, sources=tuple(sources))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, names in ((1, ["letters", "press"]), (2, ["press"]), (4, ["press", "letters"])):
        record_contribution(tmp_path, round_number=number, root="r" * 64, use=use(*names))
    record_forgotten(tmp_path, source="letters", rounds=[1, 4])
    return tmp_path


def test_the_rounds_of_a_source_are_told(folder: Path) -> None:
    history = read_history(folder)
    assert rounds_of(history, "letters") == [1, 4]
    assert rounds_of(history, "press") == [1, 2, 4]
    assert rounds_of(history, "other") == []
    assert forgotten(history) == {"letters": history[-1]["time"][:10]}
    assert history[0]["sources"][0] == {
        "name": "letters", "category": "open", "documents": 3, "tokens": 40,
    }  # fmt: skip
    assert (folder / HISTORY_FILE).stat().st_mode & 0o777 == 0o600


def test_nothing_recorded_is_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


@pytest.mark.parametrize(("change", "named"), [("edit", 2), ("remove", 2), ("nonsense", 3)])
def test_a_change_of_the_past_is_named_with_its_line(folder: Path, change: str, named: int) -> None:
    path = folder / HISTORY_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    match change:
        case "edit":
            lines[0] = lines[0].replace('"tokens": 40', '"tokens": 41')
        case "remove":
            del lines[1]
        case _:
            lines[2] = "[]"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UntrustedError, match=rf"history\.jsonl:{named}: does not follow"):
        read_history(folder)


def test_half_a_line_that_a_crash_left_is_not_read_and_overwritten(folder: Path) -> None:
    path = folder / HISTORY_FILE
    with path.open("ab") as file:
        file.write(b'{"previous": "ab')
    assert len(read_history(folder)) == 4
    record_contribution(folder, round_number=5, root="r" * 64, use=use("press"))
    assert [entry.get("round") for entry in read_history(folder)] == [1, 2, 4, None, 5]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
