"""A federation in which a launcher starts one node's trainer, and an observer only looks."""

import json
from contextlib import closing

import pytest

from tapestry_coordinator.database import database_url
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_demo.federation import free_port_pair
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

HOSTS = ("host-0", "host-1")


def evaluations(live: Live) -> list[StoredEvaluation]:
    with closing(Registry(database_url(live.home))) as registry:
        return list(registry.evaluations())


def test_a_guard_waits_for_the_launchers_processes_and_they_end_with_it(live: Live) -> None:
    live.found(rounds=1, grace_seconds=600.0)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
    node = NodeHome(live.folder / "b-lib")
    settings = node.load_settings()
    table = settings.node.model_copy(update={"launch": "external", "processes": 2})
    node.save_settings(settings.model_copy(update={"node": table}))
    live.join("eye", "ukr", role="observer")
    for member in ("a-lib", "b-lib", "eye"):
        live.run_node(member)

    genesis = NodeHome(live.folder / "eye").checkpoint(0)
    live.wait(genesis.is_dir)
    awaited = f"have a launcher start `tapestry node trainer {node.folder}`"
    live.wait(lambda: awaited in live.progress("b-lib").get("doing", ""))
    live.forks, forks, port = None, live.forks, free_port_pair()
    for rank, host in enumerate(HOSTS):
        live.environment = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        live.start(host, "node", "trainer", str(node.folder))
    live.forks, live.environment = forks, {}
    for name in ("a-lib", "b-lib", "eye", *HOSTS):
        live.wait(lambda name=name: live.processes.is_done(name), seconds=600.0)  # type: ignore[misc]

    assert live.log("b-lib").count(awaited) == 1, "said once"
    assert "a launcher has started it" in live.log("b-lib")
    seen = json.loads(live.call("node", "status", str(node.folder), "--json"))
    assert seen["rounds"][0]["weight"] == pytest.approx(0.5)
    assert seen["receipt"]["round"] == 1
    eye = json.loads(live.call("node", "status", str(live.folder / "eye"), "--json"))
    measured = eye["now"]["bits_per_byte"]
    assert set(measured) == {"0", "1"}, "what the round made, and what that is compared with"
    told = {e.round: e.bits_per_byte for e in evaluations(live) if e.member_id == "eye"}
    assert told == {int(n): pytest.approx(bits, abs=1e-4) for n, bits in measured.items()}
    assert (eye["contributed_round"], eye["now"]["failure"]) == (0, "")
