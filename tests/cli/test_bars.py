"""Progress bars and the live screen in real terminals, and their absence where there is none."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tapestry.identity.certificates import create_authority
from tests.members import joined_member

_WORK = """
import logging, time
from tapestry.cli.bars import bar
from tapestry.cli.running import log_to_stderr

log_to_stderr(as_json=False, verbose=False)
with bar() as shown:
    count = shown.counting("copying [red]files", 3e6, unit="bytes")
    for number in range(3):
        count(1e6, "loss 1.5")
        logging.getLogger("tapestry").info("a line of the log, %d", number)
        time.sleep(0.3)
print("done")
"""

_SHOW, _HIDE = "\x1b[?25h", "\x1b[?25l"
_MAIN = """
import signal, sys
from tapestry.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in a background
sys.exit(main())
"""

_AT_ONCE = """
import os
from tapestry.cli.bars import bar, restore

with bar() as shown:
    shown.show("copying", 1, 2)
    restore()
    os._exit(3)
"""


def in_terminal(command: list[str], *, until: str = "") -> tuple[int, str]:
    """Run a command in a terminal, Ctrl-C once it has said `until`; return code and output."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        said, deadline, is_interrupted = b"", time.monotonic() + 120, False
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # the last process of the terminal has ended
                    break
                if not data:
                    break
                said += data
            if until and until.encode() in said and not is_interrupted:
                is_interrupted = True
                process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    os.close(ours)
    return code, said.decode(errors="replace")


def test_a_bar_counts_on_a_terminal_and_log_lines_stay_whole() -> None:
    code, said = in_terminal([sys.executable, "-c", _WORK])
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)
    assert "copying [red]files" in plain, "nothing is taken for markup"
    assert "3.0 of 3.0 MB" in plain
    assert "loss 1.5" in plain
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain)]
    for number in range(3):
        assert any(re.fullmatch(rf"\d\d:\d\d:\d\d a line of the log, {number}", x) for x in lines)
    assert said.count(_SHOW) >= 1
    assert said.rindex(_SHOW) > said.rindex(_HIDE), "the cursor is back"


def test_a_process_that_ends_at_once_gives_the_cursor_back() -> None:
    code, said = in_terminal([sys.executable, "-c", _AT_ONCE])
    assert code == 3
    assert said.rindex(_SHOW) > said.rindex(_HIDE)


def test_there_is_no_bar_where_nobody_looks() -> None:
    done = subprocess.run([sys.executable, "-c", _WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    lines = done.stderr.splitlines()
    assert [line[9:] for line in lines] == [f"a line of the log, {number}" for number in range(3)]


def test_a_live_screen_ends_cleanly_with_ctrl_c(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    home = joined_member(
        tmp_path / "node", create_authority("loom", now=now), member_id="fr-bnf", issued=now
    )
    command = [sys.executable, "-c", _MAIN, "node", "status", str(home.folder), "--watch"]
    code, said = in_terminal(command, until="start it:")
    assert code == 0
    assert "fr-bnf in loom" in said
    assert "Traceback" not in said
    assert "Abort" not in said
    assert said.rindex(_SHOW) > said.rindex(_HIDE), "the cursor is back"
