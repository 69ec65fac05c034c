"""Two coordinators, a PostgreSQL server, a store of blobs; any of them goes away.

The coordinators are real processes. Members are the tests' own, over mutual TLS, so that a round
takes no training.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.envelopes import Envelope
from tapestry.v1 import transfer_pb2
from tapestry.wire.messages import envelope_message
from tapestry_coordinator.events import Arrived, Published
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.status import status_of
from tests.e2e.several_coordinators import Shared, again, commit
from tests.wire.serving import CALL_SECONDS

pytestmark = pytest.mark.slow


def test_the_standby_finishes_the_round_of_a_leader_that_was_killed(
    shared: Shared, record_property: Callable[[str, object], None]
) -> None:
    shared.serve_both()
    assert f":{shared.folder / 'north'} leads" in shared.log("south")
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), _other = [shared.connect(member) for member in members]
    plan = watch.until_plan()
    signed = line.sent(plan, np.array([0.5, 0.25, 0.0], np.float32))
    receipt = line.commit(signed)
    shared.wait((shared.folder / "south" / "published" / "round-000000").is_dir)

    shared.kill("north")
    killed = time.monotonic()
    shared.leader = "south"
    (line, _watch), (other, watch) = [shared.connect(member) for member in members]
    took = time.monotonic() - killed
    record_property("failover_seconds", round(took, 1))
    sys.stderr.write(f"failover: {took:.1f} s from SIGKILL to the first calls served\n")

    assert watch.until_plan() == plan, "the round goes on"
    assert line.commit(signed) == receipt
    commit(other, plan, [0.25, 0.75, 1.0])
    shared.wait(lambda: len(shared.manifests()) == 2)
    shared.wait((shared.folder / "south" / "published" / "round-000001").is_dir)
    verified = verify_checkpoint(shared.folder / "south" / "published" / "round-000001")
    assert verified.manifest.made is not None
    assert [p.member_id for p in verified.manifest.made.participation] == ["a-lib", "b-lib"]
    assert "fetching the contribution of a-lib" in shared.log("south")
    events = [event for _at, event in shared.ask(lambda registry: registry.round_events(1))]
    assert len([event for event in events if isinstance(event, Published)]) == 1

    shared.serve("north")  # it comes back, and stands by
    shared.wait(lambda: f":{shared.folder / 'south'} leads" in shared.log("north"))
    shared.send("south", signal.SIGTERM)
    shared.leads("north")
    assert status_of(shared.home("north"))["newest_checkpoint"] == 1
    fetched = shared.folder / "north" / "published" / "round-000001"
    assert verify_checkpoint(fetched).manifest_digest == verified.manifest_digest
    assert shared.postgres.password not in shared.log("north") + shared.log("south")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in shared.log("north") + shared.log("south")


def test_a_leader_that_was_paused_past_its_lease_writes_nothing(shared: Shared) -> None:
    shared.serve_both()
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), (other, _watch) = [shared.connect(member) for member in members]
    plan = watch.until_plan()
    commit(line, plan, [0.5, 0.25, 0.0])
    late = other.sent(plan, np.array([0.0, 0.5, 0.5], np.float32))  # all but the signature

    shared.send("north", signal.SIGSTOP)
    shared.leads("south")
    (_line, _watch), (new, _watch) = [shared.connect(member) for member in members]
    commit(new, plan, [0.25, 0.75, 1.0])
    shared.wait(lambda: len(shared.manifests()) == 2)

    def recorded() -> tuple[list[Envelope], list[str]]:
        events = shared.ask(lambda registry: registry.round_events(1))
        arrived = [e.digest for _at, e in events if isinstance(e, Arrived)]
        return shared.manifests(), arrived

    before = recorded()
    pending = other.transfer.Commit.future(_commit_request(late), timeout=CALL_SECONDS)
    shared.send("north", signal.SIGCONT)
    error = pending.exception()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE, "it waited at the paused leader"
    shared.wait(lambda: f":{shared.folder / 'south'} leads" in shared.log("north"))
    assert recorded() == before
    with (
        pytest.raises(grpc.RpcError) as refused,
        members[0].connected(address=f"127.0.0.1:{shared.ports['north']}") as old,
    ):
        old.describe()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "nobody listens there any more"


def _commit_request(envelope: Envelope) -> transfer_pb2.CommitRequest:
    return transfer_pb2.CommitRequest(contribution=envelope_message(envelope))


def test_database_and_store_go_away_for_a_while_and_the_round_waits(shared: Shared) -> None:
    shared.serve("north")
    shared.leads("north")
    members = [shared.join(name) for name in ("a-lib", "b-lib")]
    (line, watch), (other, _watch) = [shared.connect(member) for member in members]
    plan = watch.until_plan()

    shared.postgres.stop()
    with pytest.raises(grpc.RpcError) as gone:
        line.describe()
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "database does not answer now: everything goes on when it does" in gone.value.details()
    assert "127.0.0.1" not in gone.value.details(), "a member learns nothing of the server"
    shared.postgres.start()
    commit(line, plan, [0.5, 0.25, 0.0])

    signed = other.sent(plan, np.array([0.25, 0.75, 1.0], np.float32))
    shared.store.stop()
    with pytest.raises(grpc.RpcError) as gone:
        other.commit(signed)
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the store cannot be used now" in gone.value.details()
    assert len(shared.ask(lambda registry: registry.contributions(1))) == 1, "no receipt without it"
    shared.store.start()
    again(lambda: other.commit(signed))
    shared.wait(lambda: len(shared.manifests()) == 2)
    verify_checkpoint(shared.folder / "north" / "published" / "round-000001")
    assert shared.ask(Registry.exclusions) == [], "nobody is blamed for an outage"
    assert "Traceback" not in shared.log("north")
    assert "leads" not in shared.log("north"), "it has led all the time"
