"""What the trainer's process cannot reach, tried from inside, past Python's own checks too."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

_TRY = """
import ctypes, json, os, socket, struct, sys
from pathlib import Path
from tapestry_node.isolation import forbid_connections, isolate

keys, port, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
found = isolate(keys, records=keys.parent, writable=["work"])
blocked = []
forbid_connections(lambda call, to: blocked.append([call, to]))
tried = {}
for name, attempt in {
    "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=2),
    "resolve": lambda: socket.getaddrinfo("tapestry.example", 443),
    "send": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
}.items():
    try:
        attempt()
        tried[name] = "went"
    except OSError as error:
        tried[name] = type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
native = libc.socket(2, 1, 0)
address = struct.pack("=H2s4s8x", 2, port.to_bytes(2, "big"), bytes([127, 0, 0, 1]))
tried["native"] = libc.connect(native, address, 16)
tried["unmount"] = libc.umount2(os.fsencode(keys), 2)
for name in ("egress.jsonl", "work/text"):
    try:
        (keys.parent / name).write_text("changed")
        tried[name] = "written"
    except OSError as error:
        tried[name] = type(error).__name__
left, right = socket.socketpair()
left.send(b"ours")
tried["own pair"] = right.recv(4).decode()
try:
    Path(f"/proc/{parent}/environ").read_bytes()
    tried["parent"] = "read"
except OSError as error:
    tried["parent"] = type(error).__name__
print(json.dumps({
    "network": found.network, "keys": found.keys, "obstacle": found.obstacle,
    "tried": tried, "blocked": blocked, "in keys": os.listdir(keys),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process found that has given everything up."""
    keys = tmp_path_factory.mktemp("home") / "keys"
    keys.mkdir()
    (keys / "tls.key").write_text("secret")
    (keys.parent / "work").mkdir()
    (keys.parent / "egress.jsonl").write_text("what left")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(keys), str(server.getsockname()[1]), str(os.getpid())]
        done = subprocess.run(
            [sys.executable, "-c", _TRY, *arguments], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert (keys / "tls.key").read_text() == "secret", "it is hidden there, not gone here"
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def test_python_code_that_would_connect_is_stopped_and_told_of(found: dict[str, Any]) -> None:
    tried = found["tried"]
    assert {tried["connect"], tried["resolve"], tried["send"]} == {"PermissionError"}
    assert [call for call, _to in found["blocked"]] == [
        "socket.getaddrinfo",
        "socket.getaddrinfo",
        "socket.sendto",
    ]
    assert found["blocked"][2][1] == "192.0.2.1:53"
    assert tried["own pair"] == "ours", "its line to the guard is no network"


def test_native_code_finds_no_network_and_nobody_finds_the_keys(found: dict[str, Any]) -> None:
    if found["obstacle"]:
        assert not (found["network"] and found["keys"]), "an obstacle is never silent"
        pytest.skip(f"this kernel does not let a process shut itself off: {found['obstacle']}")
    assert found["network"]
    assert found["keys"]
    assert found["tried"]["native"] == -1
    assert found["in keys"] == []
    assert found["tried"]["egress.jsonl"] == "OSError", "read only"
    assert found["tried"]["work/text"] == "written"
    assert found["tried"]["unmount"] == -1
