"""A node whose trainer would call out, and whose contributions wait for a person."""

import json
import os
from pathlib import Path

import pytest

from tapestry.wire.egress import BLOCKED, ledger_head, read_ledger
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

_CALLS_OUT = """
import sys
if "tapestry_node.training" in sys.orig_argv:
    import threading, socket, time

    def call_out():
        while "torch" not in sys.modules:  # by then the process has given up its network
            time.sleep(0.1)
        try:
            socket.create_connection(("192.0.2.1", 443), timeout=1)
        except OSError:
            pass

    threading.Thread(target=call_out, daemon=True).start()
"""


def test_nothing_leaves_before_a_person_says_so_and_the_trainer_reaches_nobody(
    live: Live, tmp_path: Path
) -> None:
    live.found(rounds=1, grace_seconds=120.0)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
    node = NodeHome(live.folder / "a-lib")
    settings = node.load_settings()
    policy = settings.policy.model_copy(update={"approval": "manual"})
    node.save_settings(settings.model_copy(update={"policy": policy}))
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(_CALLS_OUT)
    paths = os.pathsep.join(filter(None, (str(hook), os.environ.get("PYTHONPATH"))))
    live.run_node("b-lib")
    live.forks, live.environment = None, {"PYTHONPATH": paths}
    live.run_node("a-lib")
    live.environment = {}

    def waiting() -> list[dict[str, object]]:
        said = json.loads(live.call("node", "approve", str(node.folder), "--json"))
        found: list[dict[str, object]] = said["waiting"]
        return found

    live.wait(lambda: "waits for a person" in live.progress("a-lib").get("doing", ""), seconds=180)
    (one,) = waiting()
    assert one["round"] == 1
    status = json.loads(live.call("node", "status", str(node.folder), "--json"))
    assert (status["is_running"], status["damaged"]) == (True, [])
    assert status["now"]["connected_since"] >= status["now"]["running_since"] > 0
    assert [step for step, _loss in status["now"]["losses"]] == [1, 2, 3]
    assert status["now"]["waits_for_approval"] == 1
    assert status["waiting"] == [one]
    assert f"tapestry node approve {node.folder}" in status["to_do"][0]
    sent = [d.call.rsplit("/", 1)[-1] for d in read_ledger(node.egress)]
    assert not {"OpenUpload", "PutFragment", "Commit"} & set(sent), "nothing of it has left"

    said = live.call("node", "approve", str(node.folder), "--yes")
    assert str(one["root"]) in said, "what leaves is shown first"
    assert waiting() == []
    live.wait_done("a-lib")
    live.wait_done("b-lib")
    departures = list(read_ledger(node.egress))
    status = json.loads(live.call("node", "status", str(node.folder), "--json"))
    assert (status["is_running"], status["receipt"]["round"]) == (False, 1)
    newest, genesis = status["rounds"]
    assert (newest["round"], newest["took_part"], newest["left_out"]) == (1, True, "")
    assert newest["weight"] == pytest.approx(0.5)
    assert newest["bits_per_byte"] < genesis["bits_per_byte"]
    assert status["left"]["head"] == ledger_head(node.egress)
    assert status["left"]["blocked"] == 1
    assert (
        status["left"]["today_bytes"]
        <= status["left"]["bytes"]
        == sum(departure.bytes for departure in departures)
    )
    (commit,) = [d for d in departures if d.call.endswith("/Commit")]
    assert commit.round == 1
    assert commit.allowed_by.startswith(f"{policy.digest()} approved by ")
    (blocked,) = [d for d in departures if d.call.startswith(BLOCKED)]
    assert (blocked.call, blocked.to, blocked.bytes) == (
        f"{BLOCKED}socket.getaddrinfo",
        "192.0.2.1",
        0,
    )
    assert "stopped, and on record" in live.log("a-lib")
    assert live.log("a-lib").count("waits for `tapestry node approve`") == 1, "said once"
