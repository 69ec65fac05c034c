"""Real nodes watch a real coordinator, and go with it no further than it tells one story."""

import json
import shutil
from collections.abc import Iterator

import pytest

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.statements import Receipt, payload_digest
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import from_json
from tapestry.identity.keys import load_signing_key, public_bytes
from tapestry.ledger.entries import read_entry
from tapestry.ledger.proof import PROOF_FILE, verify_ledger_proof
from tapestry_coordinator.ledgering import ledger_origin
from tapestry_node.home import NodeHome
from tests.e2e.live import Live

pytestmark = pytest.mark.slow

MEMBERS = {"a-lib": "fra", "b-lib": "eus"}


def test_members_cosign_every_checkpoint_and_refuse_an_old_backup(live: Live) -> None:
    live.found(rounds=2)
    live.decide(ledger={"witnesses": 2})
    live.serve()
    for member, language in MEMBERS.items():
        live.join(member, language)
    backup = live.folder / "backup.tar"
    live.call("coordinator", "backup", str(backup), "--dir", str(live.home.folder))
    for member in MEMBERS:
        live.run_node(member)
    for member in MEMBERS:
        live.wait_done(member)
    live.wait(lambda: all(set(cosigned(live, n)) == {*MEMBERS} for n in (1, 2)))

    genesis = live.home.load_genesis()
    origin, key = ledger_origin(genesis), genesis.coordinator_key
    ledger = live.home.ledger.read(origin=origin, public_key=key)
    kinds = [read_entry(leaf, what="entry").kind for leaf in ledger.entries]
    rounds = ["plan", "contribution", "contribution", "checkpoint"]
    assert kinds == ["checkpoint", "member", "member", *rounds, *rounds]
    assert live.home.ledger.require_tiles(ledger) == 1
    for member in MEMBERS:
        home = NodeHome(live.folder / member)
        assert home.ledger.read(origin=origin, public_key=key).entries == ledger.entries
        for receipt in receipts(home):
            assert receipt.ledger_index is not None
            entry = read_entry(ledger.entries[receipt.ledger_index], what="entry")
            assert (entry.member_id, entry.payload_digest) == (member, receipt.contribution)
        calls = json.loads(live.call("node", "audit", str(home.folder), "--json"))["by_call"]
        assert calls["LedgerService/Cosign"]["requests"] >= 3  # a head each checkpoint

    live.kill("coordinator")
    shutil.rmtree(live.home.folder)
    live.call("coordinator", "restore", str(backup), str(live.home.folder))
    live.serve()
    said = live.call(
        "node", "run", str(live.folder / "a-lib"), "--until-finished",
        "--data", str(live.folder / "a-lib-text"), code=1,
    )  # fmt: skip
    assert "entries are gone, as after an old backup was restored" in said


def cosigned(live: Live, number: int) -> list[str]:
    """Who has cosigned the head that is in a checkpoint's folder."""
    folder, genesis = live.home.checkpoint(number), live.home.load_genesis()
    if not (folder / PROOF_FILE).is_file():
        return []
    keys = {
        member: public_bytes(load_signing_key(live.folder / member / "identity/signing.key"))
        for member in MEMBERS
    }
    try:
        found = verify_ledger_proof(
            (folder / PROOF_FILE).read_bytes(),
            manifest_digest=payload_digest(read_envelope(folder / MANIFEST_FILE, what="manifest")),
            round_number=number,
            coordinator_key=genesis.coordinator_key,
            origin=ledger_origin(genesis),
            witnesses=keys,
            quorum=2,
        )
    except UntrustedError as error:
        assert "2 are asked for" in str(error)  # noqa: PT017 - the only thing that may be missing
        return []
    return list(found.cosigned)


def receipts(home: NodeHome) -> Iterator[Receipt]:
    for path in sorted(home.receipts.glob("round-[0-9]*[0-9].json")):
        payload = from_json(path.read_bytes(), what="receipt").payload
        yield Receipt.parsed(payload, what="receipt")
