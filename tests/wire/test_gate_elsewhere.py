"""The no-harm gate where another coordinator goes on, and where members are late."""

import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import pytest

from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import UnavailableError
from tapestry.identity.membership import Membership
from tapestry.wire.fetching import Fetcher
from tapestry_coordinator import publisher as publisher_module
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Published
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase
from tapestry_node.consensus import Consensus, Standing
from tapestry_node.home import NodeHome
from tests.wire.serving import Coordinator, gathered
from tests.wire.test_no_harm import closed_round, made, measure
from tests.wire.test_policy import adopt, contribute, parts

EVERY_DATABASE = True


def test_who_takes_over_goes_on_with_the_same_candidate_and_publishes_once(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="revert")
    candidate = coordinator.propose()
    measure(lines["a"], payload_digest(candidate), 2.0)
    members = {name: line.member for name, line in lines.items()}
    stack.close()
    coordinator.stop()
    shutil.rmtree(coordinator.home.candidate(1))  # it lies on the machine that is gone
    with closing(Registry(database_url(coordinator.home))) as registry:
        closed = ClosedRound.recorded(registry, coordinator.desk.state)
        assert coordinator.small.publisher.propose(closed).payload == candidate.payload
    south = coordinator.restarted()
    with members["b"].connected(south) as line:
        assert line.watch().first.candidate.payload == candidate.payload
        measure(line, payload_digest(candidate), 2.0)
    assert south.desk.state.phase is Phase.RELEASING
    assert south.aggregate().payload == candidate.payload
    south.desk.publish(candidate)  # said again: nothing happens
    events = [event for _at, event in south.registry.round_events(1)]
    assert len([event for event in events if isinstance(event, Published)]) == 1
    south.stop()


def test_a_candidate_that_comes_out_differently_is_neither_measured_nor_published(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_round(coordinator, stack, action="hold")
    coordinator.propose()
    shutil.rmtree(coordinator.home.candidate(1))
    monkeypatch.setattr(publisher_module, "software", lambda: {"tapestry": "another"})
    closed = ClosedRound.recorded(coordinator.registry, coordinator.desk.state)
    for make in (coordinator.small.publisher.propose, coordinator.small.publisher.publish):
        with pytest.raises(UnavailableError, match=r"comes out differently.*coordinator revert 1"):
            make(closed)
    assert not coordinator.home.candidate(1).exists()
    assert not coordinator.home.checkpoint(1).exists()


def test_who_is_late_while_a_candidate_is_measured_is_used_by_the_next_round(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    gate = {"action": "revert", "evaluation_seconds": 60.0}
    adopt(coordinator, no_harm=gate, lateness={"max_staleness": 1})
    first, lines = gathered(coordinator, stack, "a", "b", "c")
    first = coordinator.plan
    for name in ("a", "b"):
        contribute(lines[name], first)
    coordinator.clock.forward(300.0)
    coordinator.desk.pass_time()
    coordinator.propose()
    with pytest.raises(grpc.RpcError, match="for the next one; send it again soon"):
        contribute(lines["c"], first)
    coordinator.clock.forward(60.0)
    coordinator.desk.pass_time()
    assert sorted(parts(made(coordinator.aggregate()))) == ["a", "b"]
    coordinator.desk.pass_time()
    contribute(lines["c"], first)
    for name in ("a", "b"):
        contribute(lines[name], coordinator.plan)
    found = parts(made(coordinator.propose()))
    assert {name: part.staleness for name, part in found.items()} == {"a": 0, "b": 0, "c": 1}


def test_a_candidate_that_is_decided_about_while_a_member_fetches_it_does_not_end_the_member(
    coordinator: Coordinator, stack: ExitStack, tmp_path: Path
) -> None:
    line = closed_round(coordinator, stack, action="revert")["a"]
    candidate, genesis = coordinator.propose(), coordinator.desk.genesis
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    membership = Membership(
        federation=coordinator.federation,
        member_id="a",
        address=coordinator.address,
        coordinator_key=genesis.coordinator_key.hex(),
        genesis=genesis.genesis_digest,
    )
    fetcher = Fetcher(line.channel, coordinator.address)
    consensus = Consensus(
        home, membership, Standing(home), fetcher=lambda: fetcher, tell=lambda _words: None
    )
    newest, _card = fetcher.describe()
    parent = consensus.take(newest)
    measure(line, payload_digest(candidate), 9.0)
    coordinator.clock.forward(61)
    coordinator.desk.pass_time()
    assert made(coordinator.aggregate()).made.reverted is not None
    with pytest.raises(UnavailableError, match="checkpoint 1 cannot be fetched any more: no publi"):
        consensus.candidate(candidate, newest, parent)
