"""Ports that are looked for before anything listens there: nobody else finds them meanwhile."""

import socket
from itertools import count

import pytest

from tapestry_demo import federation
from tapestry_demo.federation import free_port_pair


def test_who_begins_to_look_at_the_same_port_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for _asking in range(3):  # as processes do that chance has begin alike
        monkeypatch.setattr(federation, "_PAIRS", count(4000))
        found.append(free_port_pair())
    assert len(set(found)) == 3
    for port in found:
        for number in (port, port + 1):
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", number))
