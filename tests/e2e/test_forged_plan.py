"""A plan that another key has signed: a real coordinator tells it, and no node trains on it.

Somebody has got at the coordinator's database, and not at its key.
"""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import RoundPlan
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.wire.egress import read_ledger
from tapestry_coordinator.database import DATABASE_FILE
from tapestry_node.client import connected
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

_now = time.time  # noqa: TID251 - the processes' own clock


def opened_plan(home: NodeHome) -> Envelope:
    """Be connected as a member until its round opens."""
    with connected(home, clock=_now) as client:
        told = next(one for one in client.watch() if one.plan is not None)
    assert told.plan is not None
    return told.plan


def put(live: Live, plan: Envelope) -> None:
    """Put a plan where the coordinator keeps that of the open round."""
    with closing(sqlite3.connect(live.home.folder / DATABASE_FILE)) as database, database:
        changed = database.execute("UPDATE plans SET envelope = ?", [to_json(plan).decode()])
        assert changed.rowcount == 1


def calls(home: NodeHome) -> set[str]:
    return {one.call.rsplit("/", 1)[-1] for one in read_ledger(home.egress)}


def refused(live: Live, home: NodeHome) -> str:
    """Run the node until it stops by itself; return what it said, once nothing else is left."""
    live.run_node("fr-bnf")
    node = live.processes.running["fr-bnf"]
    live.wait(lambda: node.poll() is not None)
    assert node.poll() == 1
    said = live.log("fr-bnf")
    assert "inner steps" not in said
    assert "Traceback" not in said
    assert not calls(home) & {"Report", "Decline", "OpenUpload", "PutFragment", "Commit"}
    assert not home.spooled()
    assert not list(home.trainer_state(1).parent.glob("*.safetensors"))
    assert home.load_state().contributed == 0
    return said


def test_a_plan_that_another_key_has_signed_stops_the_node_before_it_trains(live: Live) -> None:
    live.found(rounds=1, quorum=1)
    live.serve()
    home = NodeHome(live.join("fr-bnf", "fra"))
    settings = home.load_settings()
    alone = settings.policy.model_copy(update={"min_quorum": 1})
    home.save_settings(settings.model_copy(update={"policy": alone}))
    true = opened_plan(home)
    plan = RoundPlan.parsed(true.payload, what="plan")
    false = plan.signed(Ed25519PrivateKey.generate())
    assert false.payload == true.payload, "the very same plan: only who has signed it is another"

    put(live, false)
    said = refused(live, home)
    assert "round plan, not trained on: signed by key" in said
    status = live.call("node", "status", str(home.folder))
    assert "it ended with: round plan, not trained on: signed by key" in status

    put(live, replace(false, key_id=true.key_id))  # passing for the coordinator's
    said = refused(live, home)
    assert "round plan, not trained on: altered since key" in said
    assert "or never signed by it" in live.progress("fr-bnf")["failure"]

    longer = plan.model_copy(update={"deadline": plan.deadline + 1})
    put(live, replace(true, payload=longer.payload()))  # the true signature, of another plan
    assert "round plan, not trained on: altered since key" in refused(live, home)

    put(live, true)  # and with the coordinator's own it trains
    live.run_node("fr-bnf")
    live.wait_done("fr-bnf")
    assert home.load_state().contributed == 1
