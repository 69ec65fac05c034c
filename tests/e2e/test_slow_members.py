"""Real nodes of different speed: one that is held up, and a federation out of step."""

import os
import signal

import pytest

from tapestry.checkpoints.manifest import Participation
from tapestry.checkpoints.verify import verify_checkpoint
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

MEMBERS = {"a-lib": "fra", "b-lib": "eus", "c-lib": "ukr"}


def participation(live: Live, number: int) -> dict[str, Participation]:
    made = verify_checkpoint(live.home.checkpoint(number)).manifest.made
    assert made is not None
    return {part.member_id: part for part in made.participation}


def test_a_node_that_was_held_up_finishes_and_a_later_round_uses_it(live: Live) -> None:
    live.found(rounds=3, steps=60, grace_seconds=2.0)
    live.decide(lateness={"max_staleness": 2})
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    for member in MEMBERS:
        live.run_node(member)
    live.wait(lambda: live.progress("c-lib").get("step", 0) > 2)
    slow = live.processes.running["c-lib"].pid
    os.kill(slow, signal.SIGSTOP)
    try:
        live.wait(lambda: live.status()["newest_checkpoint"] >= 1)
    finally:
        os.kill(slow, signal.SIGCONT)
    for member in MEMBERS:
        live.wait_done(member)
    assert sorted(participation(live, 1)) == ["a-lib", "b-lib"], "nobody waited for it"
    parts = [participation(live, number).get("c-lib") for number in (2, 3)]
    late = [part for part in parts if part is not None and part.staleness]
    assert len(late) == 1, "once"
    assert (late[0].base_round, late[0].tokens) == (0, 60 * 2 * 32)
    log = live.log("c-lib")
    assert log.count("round 1: 60 inner steps") == 1, "what it had begun, it finished"
    assert f"used in round {1 + late[0].staleness}" in log


def test_out_of_step_members_reach_a_consensus_that_verifies(live: Live) -> None:
    live.found(rounds=4, steps=10)
    live.decide(
        lateness={"max_staleness": 4},
        pace={"mode": "asynchronous", "round_seconds": 0.3, "min_steps": 4},
        aggregation={"optimizer": "delayed-nesterov"},
    )
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    for member in MEMBERS:
        live.run_node(member)
    for member in MEMBERS:
        live.wait_done(member)
    outer = []
    for number in (1, 2, 3, 4):
        made = verify_checkpoint(live.home.checkpoint(number)).manifest.made
        assert made is not None
        assert made.quorum == len(made.participation) == 2, "two arrivals make an update"
        outer.append((made.outer.period, made.outer.position))
    assert outer == [(2, 1), (2, 2), (2, 1), (2, 2)], "two rounds until all have had their turn"
    used = [part for number in (1, 2, 3, 4) for part in participation(live, number).values()]
    assert len({part.contribution for part in used}) == 8, "each contribution once"
    assert {part.tokens for part in used} != {10 * 2 * 32}, "by speed, not all the same"
