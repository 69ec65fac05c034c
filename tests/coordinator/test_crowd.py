"""What the operator reads of those who are refused, and of limits on open files."""

import resource
import subprocess
import sys

import pytest

from tapestry.wire.limits import MOST_CONNECTIONS
from tapestry_coordinator.crowd import Refusals


def test_each_refusal_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refusals = Refusals(clock=lambda: now[0])
    for _ in range(100):
        refusals.note("a is not a member", peer="ipv4:10.0.0.1:5")
        refusals.note("b is not a member", peer="ipv4:10.0.0.2:5")
    assert [record.getMessage() for record in caplog.records] == [
        "refused ipv4:10.0.0.1:5: a is not a member",
        "refused ipv4:10.0.0.2:5: b is not a member",
    ]
    now[0] = 301.0
    refusals.note("a is not a member", peer="ipv4:10.0.0.9:5")
    assert caplog.records[-1].getMessage() == "refused ipv4:10.0.0.9:5: a is not a member"


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8192, reason="this user may not open 8192 files"
)
def test_a_process_allows_itself_the_files_that_its_connections_need() -> None:
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))\n"
        "from tapestry_coordinator.crowd import allow_files; allow_files()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    soft, after, hard = map(int, done.stdout.split())
    assert soft > 2 * MOST_CONNECTIONS
    assert after == hard
