"""The whole loop with real processes, and what happens when parts of it die."""

import json
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry_coordinator.database import DATABASE_FILE
from tests.e2e.live import Live
from tests.e2e.trapping import trap_all

pytestmark = pytest.mark.slow

MEMBERS = {"a-lib": "fra", "b-lib": "eus", "c-lib": "ukr"}
"""All join before one runs: the first round does not wait for who joins later."""


def test_two_institutions_reach_a_verified_consensus_that_transformers_loads(live: Live) -> None:
    """Every process is started as an institution does it, and none opens a connection of its own.

    The light commands at the end are forked.
    """
    forks, trap = live.forks, trap_all(live, live.folder / "trap")
    live.found(rounds=2)
    live.serve()
    for member, language in (("fr-bnf", "fra"), ("eu-lib", "eus")):
        live.join(member, language)
    live.describe("eu-lib", "eus")
    for member in ("fr-bnf", "eu-lib"):
        live.run_node(member)
    live.wait_done("fr-bnf")
    live.wait_done("eu-lib")
    checkpoint, ours = live.home.checkpoint(2), live.folder / "ours"
    said = live.call(
        "finetune", "language", str(checkpoint), str(ours), "--steps", "3",
        "--data", str(live.folder / "fr-bnf-text"),
    )  # fmt: skip
    assert "3 steps from checkpoint 2" in said
    live.call("finetune", "sample", str(ours), "--tokens", "4")
    assert not trap.exists(), trap.read_text(encoding="utf-8")
    live.forks = forks
    said = live.verify(2)
    assert "verified: checkpoint 2 of loom" in said

    live.wait(lambda: len(verify_checkpoint(checkpoint).card.evaluations) == 2)
    verified = verify_checkpoint(checkpoint)
    made = verified.manifest.made
    assert made is not None
    assert [p.member_id for p in made.participation] == ["eu-lib", "fr-bnf"]
    assert [p.weight for p in made.participation] == [0.5, 0.5]  # equal tokens
    assert [p.tokens for p in made.participation] == [3 * 2 * 32] * 2  # steps, sequences, length
    assert verified.lineage.newest.round == 2

    loads = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer;"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True);"
        "t = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True);"
        "assert 'tapestry' not in sys.modules;"
        "text = 'Ніхто не знає 😀\\n';"
        "assert t.decode(t(text).input_ids) == text;"
        "print(sum(p.numel() for p in m.parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", loads, str(checkpoint)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == verified.manifest.elements

    pulled = live.folder / "pulled"
    live.call("checkpoint", "pull", str(pulled), "--dir", str(live.folder / "fr-bnf"))
    assert verify_checkpoint(pulled).manifest_digest == verified.manifest_digest

    history = json.loads(
        live.call("node", "corpus", "history", str(live.folder / "eu-lib"), "--json")
    )
    assert [(e["round"], e["has_receipt"]) for e in history["entries"]] == [(1, True), (2, True)]
    sources = [source for entry in history["entries"] for source in entry["sources"]]
    assert {(one["name"], one["category"]) for one in sources} == {("archive", "private")}
    # of 6 sequences in each round a quarter is from the pool: 1, then 3 of 12 in all
    assert [one["tokens"] for one in sources] == [5 * 32, 4 * 32]

    audit = json.loads(live.call("node", "audit", str(live.folder / "fr-bnf"), "--json"))
    sent = audit["by_call"]["TransferService/PutFragment"]["bytes"]
    encoded = 2 * (verified.manifest.elements * 8.125 / 8)  # two rounds of int8
    assert encoded <= sent <= 1.01 * encoded

    parent = json.loads((ours / "tapestry-parent.json").read_text())
    assert parent["manifest"] == verified.manifest_digest


def test_a_killed_node_does_not_hold_the_round_and_comes_back(live: Live) -> None:
    live.found(rounds=2, steps=150, grace_seconds=1.0)
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    for member in MEMBERS:
        live.run_node(member)
    live.wait(lambda: live.progress("c-lib").get("step", 0) > 2)
    live.kill("c-lib")
    live.wait(lambda: live.status()["newest_checkpoint"] >= 1)
    made = verify_checkpoint(live.home.checkpoint(1)).manifest.made
    assert made is not None
    assert [p.member_id for p in made.participation] == ["a-lib", "b-lib"]
    assert [(a.member_id, a.reason) for a in made.absent] == [
        ("c-lib", "no contribution before the round closed")
    ]
    live.run_node("c-lib")
    for member in MEMBERS:
        live.wait_done(member)
    assert live.status()["newest_checkpoint"] == 2


def test_a_killed_coordinator_goes_on_with_the_same_round(live: Live) -> None:
    live.found(rounds=2, steps=200)
    live.aggregate(downlink="bfloat16")
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
        live.run_node(member)
    live.wait(lambda: live.progress("a-lib").get("step", 0) > 2)
    live.kill("coordinator")
    for member in ("a-lib", "b-lib"):  # they finish their inner steps and find nobody to send to
        contribution = live.folder / member / "spool" / "round-000001" / "contribution.json"
        live.wait(contribution.is_file)
        live.wait(lambda member=member: "trying again" in live.log(member))
    live.serve()
    for member in ("a-lib", "b-lib"):
        live.wait_done(member)
        log = live.log(member)
        assert "trying again" in log
        assert log.count("round 1: 200 inner steps") == 1, "nothing is trained twice"
    assert live.verify(2)


def test_a_contribution_spooled_before_a_crash_is_sent_without_training_again(live: Live) -> None:
    live.found(rounds=1, steps=200)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
        live.run_node(member)
    live.wait(lambda: live.progress("a-lib").get("step", 0) > 1)
    live.kill("coordinator")
    spool = live.folder / "a-lib" / "spool" / "round-000001" / "contribution.json"
    live.wait(spool.is_file)
    live.kill("a-lib")
    live.run_node("a-lib")
    live.serve()
    live.wait_done("a-lib")
    live.wait_done("b-lib")
    assert "inner steps" not in live.log("a-lib"), "the restarted node only sends"
    assert not spool.exists()
    assert (live.folder / "a-lib" / "receipts" / "round-000001.json").is_file()


def test_what_topk_leaves_and_what_came_too_late_stay_with_the_node(live: Live) -> None:
    live.found(rounds=3, steps=100, grace_seconds=1.0)
    live.aggregate(codec="topk", optimizer="sgd", learning_rate=1.0, downlink="delta-int8")
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    for member in MEMBERS:
        live.run_node(member)
    spool = live.folder / "c-lib" / "spool" / "round-000001"
    live.wait(lambda: live.progress("c-lib").get("step", 0) > 2)
    live.kill("coordinator")
    live.wait((spool / "contribution.json").is_file)
    live.kill("c-lib")
    late = (spool / "residual.f32").stat().st_size
    live.serve()
    live.wait(lambda: live.status()["newest_checkpoint"] >= 1)
    live.run_node("c-lib")
    for member in MEMBERS:
        live.wait_done(member)
    assert "round 1: not taken: " in live.log("c-lib")
    assert not spool.exists()
    verified = verify_checkpoint(live.home.checkpoint(3))
    assert verified.manifest.made is not None
    assert verified.manifest.made.codec == "topk"
    for member in ("a-lib", "b-lib"):
        residual = live.folder / member / "trainer" / "residual.f32"
        assert residual.stat().st_size == late == 4 * verified.manifest.elements


def run_all_where_c_lib_has(live: Live, rule: str, *, instead_of: str) -> None:
    """Start a federation one of whose members has another policy."""
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    path = live.folder / "c-lib" / "node.toml"
    path.write_text(path.read_text().replace(instead_of, rule))
    for member in MEMBERS:
        live.run_node(member)


def why_c_lib_is_absent(live: Live) -> str:
    made = verify_checkpoint(live.home.checkpoint(1)).manifest.made
    assert made is not None
    (absence,) = made.absent
    assert absence.member_id == "c-lib"
    return absence.reason


def test_a_plan_that_a_policy_refuses_is_declined_with_the_reason(live: Live) -> None:
    live.found(rounds=1)
    run_all_where_c_lib_has(live, "min_inner_steps = 100", instead_of="min_inner_steps = 1")
    live.wait_done("a-lib")
    assert "min_inner_steps = 100, the plan has 3" in why_c_lib_is_absent(live)


def test_a_refusal_that_the_coordinator_could_not_take_is_told_again(live: Live) -> None:
    """The guard refuses what is trained already; it is not trained once more for that."""
    live.found(rounds=1, steps=40)
    run_all_where_c_lib_has(live, "max_norm = 0.001", instead_of="max_norm = 0.0")
    live.wait(lambda: "inner steps" in live.log("c-lib"))
    database = live.home.folder / DATABASE_FILE
    with closing(sqlite3.connect(database, isolation_level=None)) as locked:
        locked.execute("BEGIN IMMEDIATE")
        live.wait(lambda: "database is locked; trying again" in live.log("c-lib"))
        locked.execute("ROLLBACK")
    for member in MEMBERS:
        live.wait_done(member)
    assert live.log("c-lib").count("inner steps") == 1
    assert "max_norm = 0.001" in why_c_lib_is_absent(live)


def test_a_full_disk_while_publishing_leaves_nothing_half_written_and_is_tried_again(
    live: Live,
) -> None:
    live.found(rounds=1, steps=40)
    live.serve()
    coordinator = live.processes.running["coordinator"].pid
    model_bytes = (live.home.checkpoint(0) / "model.safetensors").stat().st_size
    soft = model_bytes // 2
    _soft, hard = resource.prlimit(coordinator, resource.RLIMIT_FSIZE)
    resource.prlimit(coordinator, resource.RLIMIT_FSIZE, (soft, hard))
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
        live.run_node(member)
    live.wait(lambda: "tried again" in live.log("coordinator"))
    assert "File too large" in live.log("coordinator")
    assert "Traceback" not in live.log("coordinator")
    assert sorted(p.name for p in live.home.published.iterdir()) == ["round-000000"]
    resource.prlimit(coordinator, resource.RLIMIT_FSIZE, (hard, hard))
    live.wait(lambda: live.status()["newest_checkpoint"] == 1)
    verify_checkpoint(live.home.checkpoint(1))
