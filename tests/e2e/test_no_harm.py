"""A step that ruins the model: members measure it, the operator reverts, the federation goes on.

Real trainers, and two coordinators at one address, of which the leading one is killed twice: when
the candidate has been announced, and when the next round is open.
"""

import json

import numpy as np
import pytest

from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Arrived, Event, Measured, Proposed, Published
from tapestry_coordinator.registry import Registry
from tests.e2e.live import Live
from tests.servers import Postgres

pytestmark = pytest.mark.slow

MEMBERS = ["eu-lib", "fr-bnf"]


def events(live: Live, number: int) -> list[Event]:
    registry = Registry(database_url(live.home))
    try:
        return [event for _at, event in registry.round_events(number)]
    finally:
        registry.close()


def test_a_ruinous_step_is_measured_held_reverted_and_left_behind_by_whoever_leads(
    live: Live, postgres: Postgres
) -> None:
    blobs = live.folder / "blobs"
    blobs.mkdir()
    storage = ("--database", postgres.registry_database(), "--blobs", blobs.as_uri())
    live.found(rounds=2, storage=storage)
    live.decide(no_harm={"action": "hold"}, aggregation={"learning_rate": 500.0})
    live.serve()
    south = live.stand_by("south")
    for member, language in zip(MEMBERS, ("eus", "fra"), strict=True):
        live.join(member, language)
        live.run_node(member)
    live.wait(lambda: live.status()["phase"] in ("measuring", "held"), seconds=150)
    live.kill("coordinator")
    live.wait_until_listening("south")
    live.wait(lambda: live.status()["phase"] == "held", seconds=150)
    measured = live.status()["measured"]
    assert sorted(measured) == MEMBERS
    assert all("bits per byte on" in words for words in measured.values())
    assert live.status()["newest_checkpoint"] == 0

    live.decide(no_harm={"action": "revert", "max_worse": 64.0}, aggregation={"learning_rate": 0.4})
    live.call("coordinator", "policy", "apply", "--dir", str(live.home.folder))
    reason = ["--reason", "it ruins both languages", "--dir", str(south.folder)]
    live.call("coordinator", "revert", "1", *reason)
    live.wait(lambda: live.status()["newest_checkpoint"] == 1)
    live.wait(lambda: live.status()["phase"] != "waiting")
    live.kill("south")
    live.serve()
    for member in MEMBERS:
        live.wait_done(member)

    genesis, first, second = (
        open_vector_file(live.home.checkpoint(n) / MODEL_FILE).vector for n in range(3)
    )
    assert np.array_equal(genesis, first)
    assert not np.array_equal(first, second)
    made = verify_checkpoint(live.home.checkpoint(1)).manifest.made
    assert made is not None
    assert made.reverted is not None
    assert made.reverted.reason == "it ruins both languages"
    verified = verify_checkpoint(live.home.checkpoint(2)).manifest.made
    assert verified is not None
    assert verified.reverted is None
    assert verified.policy != made.policy
    for number in (1, 2):
        said = events(live, number)
        for kind, count in ((Proposed, 1), (Published, 1), (Arrived, 2), (Measured, 2)):
            assert len([e for e in said if isinstance(e, kind)]) == count, (number, kind)
    kept = json.loads(live.call("node", "status", str(live.folder / "fr-bnf"), "--json"))["now"]
    assert sorted(kept["bits_per_byte"]) == ["0", "1", "2"]
    assert kept["bits_per_byte"]["1"] == pytest.approx(kept["bits_per_byte"]["0"], abs=1e-6)
