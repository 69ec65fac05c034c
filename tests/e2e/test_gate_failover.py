"""The no-harm gate while the coordinator that leads is killed: another one goes on with it."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.envelopes import Envelope
from tapestry.wire.messages import envelope_value
from tapestry_coordinator.events import Measured
from tapestry_coordinator.status import status_of
from tests.e2e.several_coordinators import Shared, commit
from tests.wire.serving import Line, Member
from tests.wire.test_no_harm import measure, vector

pytestmark = pytest.mark.slow

DELTAS = {"a-lib": [0.5, 0.25, 0.0], "b-lib": [0.25, 0.75, 1.0]}


def until_candidate(shared: Shared, member: Member) -> tuple[Line, Envelope]:
    """Connect to whoever leads, and wait for what is to be measured."""
    line, watch = shared.connect(member)
    message = watch.first
    while not message.HasField("candidate"):
        message = watch.next()
    return line, envelope_value(message.candidate)


def close_first_round(shared: Shared) -> dict[str, Member]:
    """Have genesis measured, 2 bits per byte by both, and both contributions in."""
    members = {name: shared.join(name) for name in DELTAS}
    lines = {name: shared.connect(member) for name, member in members.items()}
    plan = lines["a-lib"][1].until_plan()
    for name, (line, _watch) in lines.items():
        measure(line, plan.base, 2.0)
        commit(line, plan, DELTAS[name])
    return members


def kinds(shared: Shared) -> Counter[str]:
    """What is on record of the first round, by kind."""
    return Counter(type(event).__name__ for event in shared.events(1))


def candidate_of(folder: Path) -> Envelope:
    return read_envelope(folder / MANIFEST_FILE, what="candidate's manifest")


def test_a_candidate_outlives_two_leaders_and_is_published_once(shared: Shared) -> None:
    gate = {"action": "hold", "max_worse": 0.1, "evaluation_seconds": 600.0}
    shared.decide(no_harm=gate)
    shared.serve_both()
    members = close_first_round(shared)
    line, candidate = until_candidate(shared, members["a-lib"])
    digest = payload_digest(candidate)
    measure(line, digest, 2.5)

    shared.kill("north")  # one of two has measured
    shared.leads("south")
    line, same = until_candidate(shared, members["b-lib"])
    assert same.payload == candidate.payload
    assert candidate_of(shared.home("south").candidate(1)).payload == candidate.payload
    measure(line, digest, 2.0)
    shared.wait(lambda: status_of(shared.home("south"))["phase"] == "held")
    said = {e.member_id: e.dissent for e in shared.events(1) if isinstance(e, Measured)}
    assert said == {"a-lib": "2.0000 to 2.5000 bits per byte on fra", "b-lib": ""}

    shared.kill("south")  # while the operator thinks about it
    shared.serve("north")
    shared.leads("north")
    assert status_of(shared.home("north"))["phase"] == "held"
    assert len(shared.manifests()) == 1
    release = ["coordinator", "release", "1", "--dir", str(shared.home("north").folder)]
    assert shared.forks.call(release, shared.folder / "logs")[0] == 0
    shared.wait(lambda: len(shared.manifests()) == 2)
    assert shared.manifests()[1].payload == candidate.payload
    assert verify_checkpoint(shared.home("north").checkpoint(1)).manifest_digest == digest
    assert kinds(shared) == {
        "Tick": 1, "Arrived": 2, "Proposed": 1, "Measured": 2, "Ruled": 1, "Published": 1,
    }  # fmt: skip
    members_lines = [shared.connect(member) for member in members.values()]
    assert members_lines[0][1].until_plan().base == digest, "the federation goes on from there"


def test_leaders_that_die_as_they_propose_and_as_they_publish_change_nothing(
    shared: Shared,
) -> None:
    shared.decide(no_harm={"action": "revert", "max_worse": 0.1, "evaluation_seconds": 600.0})
    shared.serve("north", failpoints="event-uncommitted@4")  # opened, two arrived, proposed
    shared.leads("north")
    shared.serve("south", failpoints="event-uncommitted@4")  # proposed, two measured, published
    shared.wait(lambda: "standing by: " in shared.log("south"))
    members = close_first_round(shared)
    shared.wait_for_death("north")
    assert kinds(shared) == {"Tick": 1, "Arrived": 2}
    unannounced = candidate_of(shared.home("north").candidate(1))

    shared.leads("south")
    for name, bits in (("a-lib", 2.0), ("b-lib", 2.5)):
        line, candidate = until_candidate(shared, members[name])
        assert candidate.payload == unannounced.payload, "made again, the same to the bit"
        with suppress(grpc.RpcError):  # it may die before it has answered the second
            measure(line, payload_digest(unannounced), bits)
    shared.wait_for_death("south")
    assert kinds(shared) == {"Tick": 1, "Arrived": 2, "Proposed": 1, "Measured": 2}

    shared.serve("north")
    shared.wait(lambda: len(shared.manifests()) == 2)
    assert kinds(shared)["Published"] == 1
    home = shared.home("north")
    made = Manifest.parsed(shared.manifests()[1].payload, what="manifest").made
    assert made is not None
    assert made.reverted is not None
    assert made.reverted.reason == "b-lib: 2.0000 to 2.5000 bits per byte on fra"
    assert made.reverted.candidate == payload_digest(unannounced)
    shared.wait(home.checkpoint(1).is_dir)
    verify_checkpoint(home.checkpoint(1))
    assert vector(home.checkpoint(1)) == vector(home.checkpoint(0))
