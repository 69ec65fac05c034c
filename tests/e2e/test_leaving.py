"""One institution leaves with everything; the other goes on; a new federation begins with it."""

import json

import pytest

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.web.settings import PageSettings
from tapestry_demo.federation import Processes, free_port_pair
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow


def alone_is_enough(live: Live, member: str) -> None:
    """Let a node take part in rounds of one."""
    home = NodeHome(live.folder / member)
    settings = home.load_settings()
    policy = settings.policy.model_copy(update={"min_quorum": 1})
    home.save_settings(settings.model_copy(update={"policy": policy}))


def change_settings(home: CoordinatorHome, *, port: int, total: int) -> None:
    settings = home.load_settings()
    network = settings.network.model_copy(
        update={"listen": f"127.0.0.1:{port}", "enrolment_listen": f"127.0.0.1:{port + 1}"}
    )
    rounds = settings.rounds.model_copy(update={"total": total, "gather_seconds": 30.0})
    changes = {"network": network, "rounds": rounds, "page": PageSettings(enabled=False)}
    settings_module.save(home.folder, settings.model_copy(update=changes))


def test_one_leaves_the_other_goes_on_and_a_new_federation_begins(live: Live) -> None:
    live.found(rounds=1, steps=2, quorum=1)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
        alone_is_enough(live, member)
    live.run_node("a-lib")
    live.run_node("b-lib")
    live.wait_done("a-lib")
    live.wait_done("b-lib")

    node, export = str(live.folder / "a-lib"), live.folder / "ours"
    assert "add --yes" in live.call("node", "leave", node, "--revoke-only", "--json", code=1)
    table = json.loads(live.call("node", "leave", node, "--export", str(export), "--yes", "--json"))
    assert (table["export"], table["verified"]["checkpoint"]) == (str(export), 1)
    assert table["left_at"] > 1_700_000_000
    assert table["verified"]["verified"] is True
    assert "this node has left loom" in live.call("node", "run", node, code=1)
    members = json.loads(
        live.call("coordinator", "members", "--dir", str(live.home.folder), "--json")
    )
    assert {m["member_id"]: m["status"] for m in members["members"]} == {
        "a-lib": "left",
        "b-lib": "active",
    }
    live.kill("coordinator")
    change_settings(live.home, port=live.port, total=2)
    live.serve()
    live.run_node("b-lib")
    live.wait_done("b-lib")
    made = verify_checkpoint(live.home.checkpoint(2)).manifest.made
    assert made is not None
    assert [p.member_id for p in made.participation] == ["b-lib"]
    live.kill("coordinator")

    found = json.loads(live.call("node", "verify-export", str(export), "--json"))
    assert (found["verified"], found["checkpoint"], found["card"]) == (True, 1, True)
    with Processes(live.folder / "second" / "logs") as processes:
        second = Live(live.folder / "second", processes, free_port_pair(), live.forks)
        said = second.call(
            "coordinator", "init", str(second.home.folder), "--name", "north",
            "--address", f"localhost:{second.port}", "--from", str(export),
        )  # fmt: skip
        assert "goes on    from checkpoint 1 of loom" in said
        change_settings(second.home, port=second.port, total=1)
        second.serve()
        second.join("c-lib", "ukr")
        alone_is_enough(second, "c-lib")
        second.run_node("c-lib")
        second.wait_done("c-lib")
    first = verify_checkpoint(second.home.checkpoint(1))
    was = first.lineage.origin.continues
    old = verify_checkpoint(live.home.checkpoint(1))
    assert was is not None
    assert (was.federation, was.manifest) == ("loom", old.manifest_digest)
    assert first.manifest.made is not None
    assert [p.member_id for p in first.manifest.made.participation] == ["c-lib"]
    assert second.home.pool.is_file(), "the open pool came along"
