"""Twenty members at one coordinator, each with its own certificate and connection."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "many_members.py"


@pytest.mark.slow
def test_no_member_of_many_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    crowd = ["--members", "20", "--rounds", "3", "--processes", "2", "--idle-seconds", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *crowd, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["smallest_cohort"], figures["largest_cohort"]) == (20, 20)
    assert figures["left_out"] == {}
