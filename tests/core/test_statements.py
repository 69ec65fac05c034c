"""Statements as in-toto and DSSE have them: read back, by us and by another implementation."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from tapestry.checkpoints.statements import Contribution, Receipt, payload_digest, predicate_of
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import canonical_json, sign, to_json
from tapestry.identity.keys import public_bytes

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY)
CONTRIBUTION = Contribution(
    genesis="0" * 64, round=7, base="1" * 64, member_id="fr-bnf", codec="int8", fragments=1,
    root="2" * 64, tokens=4096, steps=10, norm=1.5, metrics={"loss_last": 2.0},
)  # fmt: skip


def opened(payload: bytes) -> Contribution:
    envelope = sign(Contribution.payload_type, payload, KEY)
    return Contribution.opened(envelope, public_key=PUBLIC, what="contribution")


def test_a_statement_is_an_in_toto_statement() -> None:
    table = json.loads(CONTRIBUTION.payload())
    assert table["_type"] == "https://in-toto.io/Statement/v1"
    assert table["predicateType"] == "urn:tapestry:contribution:v1"
    assert table["subject"] == [
        {
            "name": "pseudo-gradient of fr-bnf for round 7",
            "digest": {"rfc6962Sha256": "2" * 64},
        }
    ]
    assert table["predicate"] == CONTRIBUTION.model_dump(mode="json")
    assert predicate_of(CONTRIBUTION.payload())["round"] == 7
    assert CONTRIBUTION.signed(KEY).payload_type == "application/vnd.in-toto+json"


def test_it_comes_back_as_it_was_signed() -> None:
    envelope = CONTRIBUTION.signed(KEY)
    assert Contribution.opened(envelope, public_key=PUBLIC, what="contribution") == CONTRIBUTION
    assert opened(envelope.payload) == CONTRIBUTION
    assert payload_digest(envelope) == payload_digest(sign("other", CONTRIBUTION.payload(), KEY))


def test_securesystemslib_verifies_our_envelopes() -> None:
    ours = CONTRIBUTION.signed(KEY)
    other = OtherEnvelope.from_dict(json.loads(to_json(ours)))
    key = SSlibKey(ours.key_id, "ed25519", "ed25519", {"public": PUBLIC.hex()})
    other.verify([key], threshold=1)
    changed = replace(ours, payload=ours.payload.replace(b"fr-bnf", b"fr-bnx"))
    with pytest.raises(VerificationError):
        OtherEnvelope.from_dict(json.loads(to_json(changed))).verify([key], threshold=1)


def test_a_statement_of_another_type_does_not_pass_for_it() -> None:
    receipt = Receipt(
        genesis="0" * 64, round=7, member_id="fr-bnf", contribution="3" * 64, root="2" * 64,
        accepted_at=0.0,
    ).signed(KEY)  # fmt: skip
    with pytest.raises(UntrustedError, match="a statement of type 'urn:tapestry:receipt:v1'"):
        Contribution.opened(receipt, public_key=PUBLIC, what="contribution")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1", "_type"),
        ("_type", None, "_type"),
        ("predicateType", "urn:tapestry:plan:v1", "a statement of type 'urn:tapestry:plan:v1'"),
        ("predicateType", 3, "predicateType"),
        ("subject", [], "its subject is not what it speaks of"),
        ("subject", [{"name": "x", "digest": {"sha256": "2" * 64}}], "its subject"),
        ("subject", "x", "subject"),
        ("predicate", {}, "contribution: genesis"),
        ("predicate", [], "contribution: "),
    ],
)
def test_what_is_no_statement_of_ours_is_refused(key: str, value: object, named: str) -> None:
    table = json.loads(CONTRIBUTION.payload())
    table[key] = value
    with pytest.raises(UntrustedError, match=named):
        opened(canonical_json(table))


def test_another_subject_than_the_predicate_is_refused() -> None:
    payload = CONTRIBUTION.payload().replace(b'"root":"2222', b'"root":"3222')
    with pytest.raises(UntrustedError, match="its subject is not what it speaks of"):
        opened(payload)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    """The example of section 3.2.2 of RFC 8785."""
    value = json.loads(
        r"""{
          "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
          "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
          "literals": [null, true, false]
        }"""
    )
    assert canonical_json(value).decode() == (
        '{"literals":[null,true,false],'
        '"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
