"""A socket trap inside every process of a federation: who calls out is written down."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.live import Live

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


def trap_all(live: Live, folder: Path) -> Path:
    """Start what `live` starts as people do, with a trap in it; return the trap's log.

    There is no such file until something calls out; the trap was seen to catch that.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_TRAP, encoding="utf-8")
    found_first = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    log = folder / "trap.log"
    live.forks = None
    live.environment = {"PYTHONPATH": found_first, "TAPESTRY_TRAINER_TRAP_LOG": str(log)}
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=.01)\n"
    code += "except OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=live.environment, check=True)
    assert "192.0.2.1" in log.read_text(encoding="utf-8")
    log.unlink()
    return log
