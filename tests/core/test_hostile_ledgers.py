"""Readers of the ledger's files and messages, given valid ones made wrong."""

import json

from hypothesis import HealthCheck, given, settings

from tapestry.ledger.entries import read_entry
from tapestry.ledger.evidence import verify_evidence, write_evidence
from tapestry.ledger.heads import open_head, read_head
from tapestry.ledger.notes import read_note, read_signature
from tapestry.ledger.proof import verify_ledger_proof, write_proof
from tests.core.ledgers import ORIGIN, PUBLIC, cosigned, entries, head_of, public_key, tree_of
from tests.damaging import answered, damaged, damaged_json

bounded = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LEAVES = entries(9)
TREE = tree_of(LEAVES)
HEAD = cosigned(head_of(TREE), "fr-bnf")
PROOF = write_proof(TREE, leaf=LEAVES[4], index=4, head=HEAD)
_LIE = tree_of(entries(9, history="two", since=3))
EVIDENCE = write_evidence(
    head_of(TREE, 5), head_of(_LIE), root=_LIE.root(5), path=_LIE.consistency(5)
)
ENTRY = json.loads(LEAVES[4])


@bounded
@given(raw=damaged_json(json.loads(PROOF)) | damaged(PROOF))
def test_a_proof_of_any_content_is_verified_or_refused(raw: bytes) -> None:
    answered(
        lambda: verify_ledger_proof(
            raw,
            manifest_digest=ENTRY["payload_digest"],
            round_number=1,
            coordinator_key=PUBLIC,
            origin=ORIGIN,
            witnesses={"fr-bnf": public_key("fr-bnf")},
            quorum=1,
        )
    )


@bounded
@given(raw=damaged_json(json.loads(EVIDENCE)) | damaged(EVIDENCE))
def test_evidence_of_any_content_is_verified_or_refused(raw: bytes) -> None:
    answered(lambda: verify_evidence(raw, origin=ORIGIN, public_key=PUBLIC, what="evidence"))


@bounded
@given(raw=damaged_json(ENTRY))
def test_an_entry_of_any_content_is_read_or_refused(raw: bytes) -> None:
    answered(lambda: read_entry(raw, what="entry"))


@bounded
@given(raw=damaged(HEAD.body.encode()))
def test_a_head_of_any_text_is_opened_or_refused(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    answered(lambda: read_note(raw, what="note"))
    answered(lambda: read_head(text, what="head"))
    answered(lambda: open_head(raw, origin=ORIGIN, public_key=PUBLIC, what="head"))
    answered(lambda: read_signature(text.splitlines()[-1] if text else "", what="signature"))


def test_what_is_made_wrong_was_right() -> None:
    assert verify_evidence(EVIDENCE, origin=ORIGIN, public_key=PUBLIC, what="it").first.size == 5
