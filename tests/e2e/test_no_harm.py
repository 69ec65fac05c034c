"""A step that ruins the model: members measure it, the operator reverts, the federation goes on."""

import json

import numpy as np
import pytest

from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tests.e2e.live import Live

pytestmark = pytest.mark.slow


def test_a_ruinous_step_is_measured_held_reverted_and_left_behind(live: Live) -> None:
    live.found(rounds=2)
    live.decide(no_harm={"action": "hold"}, aggregation={"learning_rate": 500.0})
    live.serve()
    for member, language in (("fr-bnf", "fra"), ("eu-lib", "eus")):
        live.join(member, language)
        live.run_node(member)
    live.wait(lambda: live.status()["phase"] == "held", seconds=150)
    measured = live.status()["measured"]
    assert sorted(measured) == ["eu-lib", "fr-bnf"]
    assert all("bits per byte on" in words for words in measured.values())
    assert live.status()["newest_checkpoint"] == 0

    folder = ["--dir", str(live.home.folder)]
    live.decide(no_harm={"action": "revert", "max_worse": 64.0}, aggregation={"learning_rate": 0.4})
    live.call("coordinator", "policy", "apply", *folder)
    live.call("coordinator", "revert", "1", "--reason", "it ruins both languages", *folder)
    live.wait_done("fr-bnf")
    live.wait_done("eu-lib")

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
    kept = json.loads(live.call("node", "status", str(live.folder / "fr-bnf"), "--json"))["now"]
    assert sorted(kept["bits_per_byte"]) == ["0", "1", "2"]
    assert kept["bits_per_byte"]["1"] == pytest.approx(kept["bits_per_byte"]["0"], abs=1e-6)
