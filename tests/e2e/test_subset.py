"""Institutions that train a part of a model together: from scratch, and of one pre-trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.manifest import Card
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_node.home import NodeHome
from tests.e2e.live import Live
from tests.pretrained import smollm2

pytestmark = pytest.mark.slow

MEMBERS = {"a-lib": "fra", "b-lib": "eus"}
DOCS = Path(__file__).parents[2] / "docs"


def measured(live: Live, number: int) -> VerifiedCheckpoint:
    """Wait until both members have measured a checkpoint; return it, verified."""
    folder = live.home.checkpoint(number)

    def is_measured() -> bool:
        envelope = read_envelope(folder / CARD_FILE, what="card")
        return len(Card.parsed(envelope.payload, what="card").evaluations) == 2

    live.wait(is_measured)
    return verify_checkpoint(folder)


def use_one_thread(home: NodeHome) -> None:
    """Let a node's trainer share the cores with another's."""
    settings = home.load_settings()
    node = settings.node.model_copy(update={"threads": 1})
    home.save_settings(settings.model_copy(update={"node": node}))


def learn_fast(home: CoordinatorHome) -> None:
    """Let four steps show."""
    settings = home.load_settings()
    inner = settings.inner.model_copy(update={"learning_rate": 5e-4, "warmup_steps": 0})
    settings_module.save(home.folder, settings.model_copy(update={"inner": inner}))


def changed(live: Live, number: int) -> set[str]:
    """Return the tensors of a checkpoint that are not genesis's to the bit."""
    before = load_file(live.home.checkpoint(0) / MODEL_FILE)
    after = load_file(live.home.checkpoint(number) / MODEL_FILE)
    assert before.keys() == after.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_two_members_train_the_last_layers_over_two_rounds(live: Live) -> None:
    patterns = "model.layers.[23].*,model.norm.weight"
    live.found(rounds=2, trainable=patterns)
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    for member in MEMBERS:
        live.run_node(member)
    for member in MEMBERS:
        live.wait_done(member)
    checkpoint, verified = live.home.checkpoint(2), measured(live, 2)
    moved = changed(live, 2)
    assert len(moved) == 2 * 11 + 1
    assert all(
        name.startswith(("model.layers.2.", "model.layers.3.", "model.no")) for name in moved
    )
    shown = live.call("checkpoint", "show", str(checkpoint))
    whole = sum(tensor.numel() for tensor in load_file(checkpoint / MODEL_FILE).values())
    elements = verified.manifest.elements
    assert f"{elements:,} of {whole:,} parameters are trained: {patterns}" in shown
    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    assert torch.equal(
        model.state_dict()["model.norm.weight"],
        load_file(checkpoint / MODEL_FILE)["model.norm.weight"],
    )
    audit = json.loads(live.call("node", "audit", str(live.folder / "a-lib"), "--json"))
    sent = audit["by_call"]["TransferService/PutFragment"]["bytes"]
    assert sent < 1.01 * 2 * elements * 8.125 / 8, "two rounds of int8 of the part, nothing else"

    ours = live.folder / "ours"
    live.call(
        "finetune", "language", str(checkpoint), str(ours), "--steps", "3",
        "--data", str(live.folder / "a-lib-text"),
    )  # fmt: skip
    before, after = (load_file(folder / MODEL_FILE) for folder in (checkpoint, ours))
    assert {n for n in after if not torch.equal(after[n], before[n])} == moved
    export = live.folder / "export"
    live.call("node", "leave", str(live.folder / "a-lib"), "--export", str(export), "--yes")
    found = json.loads(live.call("node", "verify-export", str(export), "--json"))
    assert found["verified"]


def test_a_pretrained_model_goes_on_in_two_institutions(live: Live) -> None:
    base = smollm2()
    live.found(rounds=1, steps=4, model=base, trainable="model.layers.29.*,model.norm.weight")
    learn_fast(live.home)
    live.serve()
    for number, member in enumerate(MEMBERS):
        use_one_thread(NodeHome(live.join(member, "fra")))
        files = sorted(DOCS.glob("*.md"))[number::2]
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
        path = live.folder / f"{member}-text" / "text.txt"
        path.write_text(text[:20_000], encoding="utf-8")
    for member in MEMBERS:
        live.run_node(member)
    for member in MEMBERS:
        live.wait(lambda member=member: live.processes.is_done(member), seconds=600.0)
    begun, ended = (measured(live, number).card.evaluations for number in (0, 1))
    for before, after in zip(begun, ended, strict=True):
        assert before.bits_per_byte < 4, "it knows English; a new model has 8 bits a byte"
        assert after.bits_per_byte < before.bits_per_byte
    moved = changed(live, 1)
    assert len(moved) == 9 + 1
    assert all(name.startswith(("model.layers.29.", "model.norm.")) for name in moved)
    model = AutoModelForCausalLM.from_pretrained(live.home.checkpoint(1), local_files_only=True)
    theirs = load_file(base / MODEL_FILE)
    for name in set(theirs) - moved:
        assert torch.equal(model.state_dict()[name], theirs[name].float()), name
