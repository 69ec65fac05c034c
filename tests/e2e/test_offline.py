"""Nobody phones home: a socket trap inside every process of a federation that trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.live import Live

pytestmark = pytest.mark.slow

_TRAP = """
import os, socket
_log = os.environ["TAPESTRY_TRAINER_TRAP_LOG"]
_connect, _resolve = socket.socket.connect, socket.getaddrinfo

def _record(what):
    with open(_log, "a", encoding="utf-8") as file:
        file.write(f"{what}\\n")

def connect(self, address):
    is_local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost")
    if not is_local:
        _record(f"connect {address}")
    return _connect(self, address)

def getaddrinfo(host, *args, **kwargs):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        _record(f"resolve {host}")
    return _resolve(host, *args, **kwargs)

socket.socket.connect = connect
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def trap(live: Live, tmp_path: Path) -> Path:
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_TRAP, encoding="utf-8")
    live.forks = None
    found_first = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    live.environment = {
        "PYTHONPATH": found_first,
        "TAPESTRY_TRAINER_TRAP_LOG": str(tmp_path / "trap.log"),
    }
    return tmp_path / "trap.log"


def test_the_trap_catches_a_library_that_calls_out(live: Live, trap: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=.01)\n"
    code += "except OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=live.environment, check=True)
    assert "192.0.2.1" in trap.read_text()


def test_training_and_fine_tuning_open_no_connection_of_their_own(live: Live, trap: Path) -> None:
    live.found(rounds=1)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
        live.run_node(member)
    live.wait_done("a-lib")
    live.wait_done("b-lib")
    checkpoint, out = str(live.home.checkpoint(1)), str(live.folder / "ours")
    text = str(live.folder / "a-lib-text")
    live.call("finetune", "language", checkpoint, out, "--steps", "2", "--data", text)
    live.call("finetune", "sample", out, "--tokens", "4")
    assert not trap.exists(), trap.read_text()
