"""Readers of what comes from outside, given valid things made wrong: typed refusals or nothing."""

import base64
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapestry.checkpoints.ancestry import read_ancestry, verify_ancestry
from tapestry.checkpoints.exports import Export
from tapestry.checkpoints.folder import read_envelope, read_lineage
from tapestry.checkpoints.manifest import Card, Manifest, verify_lineage
from tapestry.checkpoints.outer_state import OuterStateFile
from tapestry.checkpoints.policy import FederationPolicy, published_policy
from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan, Statement
from tapestry.checkpoints.vector_file import VectorWriter, open_vector_file
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.config import load_settings
from tapestry.data.sources import read_table
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import canonical_json, from_json, open_json, sign, to_json
from tapestry.identity.invitations import decode
from tapestry.identity.keys import public_bytes
from tapestry.params.codecs import CODECS
from tapestry.params.layout import ParameterLayout
from tapestry.wire.egress import EgressLedger, read_ledger
from tapestry.wire.kernel import read_kernel
from tests.conftest import Federation
from tests.damaging import answered, changed, damaged, damaged_json, damaged_toml, text_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY)
HEX = "0123456789abcdef" * 4

bounded = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@cache
def _vector(folder: Path) -> bytes:
    layout = ParameterLayout.from_shapes([("b.weight", (2, 3)), ("a.bias", (4,))])
    path = folder / "valid.safetensors"
    with path.open("wb") as file:
        writer = VectorWriter(file, layout, {})
        writer.write(np.arange(10, dtype=np.float32))
        writer.finish()
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example writes anew."""
    return tmp_path_factory.mktemp("hostile") / "file"


# Statements: what a signer may sign, and what may come instead


@pytest.fixture(scope="module")
def statements(federation: Federation) -> list[tuple[type[Statement], dict[str, Any]]]:
    """Every kind of statement, as this federation's members and coordinator have made them."""
    stored = federation.closed.contributions[0]
    folder = federation.newest
    envelopes = {
        Contribution: stored.envelope,
        Receipt: stored.receipt,
        Manifest: read_envelope(folder / "tapestry/manifest.json", what="manifest"),
        Card: read_envelope(folder / "tapestry/card.json", what="card"),
    }
    plan = federation.closed.plan.signed(KEY)
    export = Export(
        federation="loom",
        genesis=HEX,
        member_id="fr-bnf",
        signing_key=HEX,
        key_proof=HEX,
        round=1,
        manifest=HEX,
        ledger_head=HEX,
        receipts=0,
        created_at=1.0,
        files=(),
        parameters=1,
    ).signed(KEY)
    pairs = [*envelopes.items(), (RoundPlan, plan), (Export, export)]
    return [(kind, json.loads(envelope.payload)) for kind, envelope in pairs]


@settings(bounded, max_examples=150)
@given(data=st.data())
def test_a_signed_statement_of_any_content_is_opened_or_refused(
    statements: list[tuple[type[Statement], dict[str, Any]]], data: st.DataObject
) -> None:
    kind, valid = data.draw(st.sampled_from(statements))
    envelope = sign(kind.payload_type, text_of(data.draw(changed(valid))), KEY)
    found: list[Statement] = []
    answered(lambda: found.append(kind.opened(envelope, public_key=PUBLIC, what="statement")))
    for statement in found:  # what was opened can be signed again
        assert kind.parsed(statement.payload(), what="statement") == statement


@bounded
@given(data=st.data())
def test_an_envelope_of_any_bytes_is_read_or_refused(
    federation: Federation, data: st.DataObject
) -> None:
    valid = json.loads(to_json(federation.closed.contributions[0].envelope))
    raw = data.draw(damaged_json(valid))
    answered(lambda: from_json(raw, what="envelope"))
    signed = sign("application/x", raw, KEY)
    answered(lambda: open_json(signed, payload_type="application/x", public_key=PUBLIC, what="it"))


@bounded
@given(data=st.data())
def test_a_genesis_of_any_content_founds_nothing(
    federation: Federation, data: st.DataObject
) -> None:
    """A folder from anywhere names its own key, so whoever made it has signed it well."""
    genesis = read_envelope(federation.genesis / "tapestry/manifest.json", what="genesis")
    manifest = Manifest.parsed(genesis.payload, what="genesis")
    assert manifest.origin is not None
    origin = manifest.origin.model_copy(update={"coordinator_key": PUBLIC.hex()})
    valid = manifest.model_copy(update={"origin": origin}).payload()
    payload = text_of(data.draw(changed(json.loads(valid))))
    envelope = sign(genesis.payload_type, payload, KEY)
    answered(lambda: verify_lineage([envelope]))
    answered(lambda: verify_ancestry([envelope]))


# Files of a published folder


@pytest.mark.parametrize("name", ["manifest.json", "lineage.jsonl", "card.json", "ancestry.jsonl"])
def test_statements_in_a_folder_are_refused_whatever_is_in_them(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    untouched = verify_checkpoint(federation.newest)
    folder = tmp_path / "round-000001"
    (folder / "tapestry").mkdir(parents=True)
    for path in federation.newest.rglob("*"):
        if path.is_file():
            os.link(path, folder / path.relative_to(federation.newest))
    source = federation.newest / "tapestry" / name
    valid = (
        source if source.is_file() else federation.newest / "tapestry/lineage.jsonl"
    ).read_bytes()

    @settings(bounded, max_examples=25)
    @given(raw=damaged(valid) | damaged_json(json.loads(valid)))
    def check(raw: bytes) -> None:
        path = folder / "tapestry" / name
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        answered(lambda: read_lineage(folder))
        answered(lambda: read_ancestry(folder))
        found: list[VerifiedCheckpoint] = []
        answered(lambda: found.append(verify_checkpoint(folder)))
        for verified in found:  # blanks between the words of an envelope, and nothing else
            assert (verified.manifest, verified.card) == (untouched.manifest, untouched.card)

    check()


@bounded
@given(data=st.data())
def test_a_vector_file_of_any_bytes_is_mapped_or_refused(place: Path, data: st.DataObject) -> None:
    valid = _vector(place.parent)
    length = int.from_bytes(valid[:8], "little")
    header = json.loads(valid[8 : 8 + length])

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + valid[8 + length :]

    place.write_bytes(data.draw(damaged(valid) | changed(header).map(text_of).map(with_header)))

    def read() -> None:
        opened = open_vector_file(place)
        opened.root()
        for index in range(opened.layout.fragments):
            opened.read_fragment(index)

    answered(read)


@bounded
@given(data=st.data())
def test_an_outer_state_of_any_bytes_is_read_or_refused(place: Path, data: st.DataObject) -> None:
    layout = ParameterLayout.from_shapes([("w", (10,))])
    place.write_bytes(data.draw(damaged(np.arange(20, dtype="<f4").tobytes())))

    def read() -> None:
        state = OuterStateFile(place, layout, 2)
        state.root()

    answered(read)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_fragment_of_any_bytes_is_decoded_or_refused(name: str) -> None:
    codec = CODECS[name]
    valid = codec.encode(np.linspace(-1, 1, 4096, dtype=np.float32))

    @settings(bounded, max_examples=25)
    @given(raw=damaged(valid))
    def check(raw: bytes) -> None:
        answered(lambda: codec.decode(raw, 4096))

    check()


# What people write, and what a node keeps


POLICY = FederationPolicy().model_dump(mode="json")
CORPUS = {
    "source": [
        {
            "name": "letters",
            "path": "letters",
            "language": "fr",
            "licence": "CC0-1.0",
            "jurisdiction": "FR",
            "category": "open",
        }
    ]
}


@settings(bounded, max_examples=100)
@given(data=st.data())
def test_a_policy_of_any_text_is_loaded_or_refused(place: Path, data: st.DataObject) -> None:
    valid = {**POLICY, "publication": {"texts": [{"name": "x", "licence": "MIT"}]}}
    place.write_bytes(data.draw(damaged_toml(valid)))

    def read() -> None:
        loaded = load_settings(place, FederationPolicy)
        assert FederationPolicy.model_validate_json(loaded.canonical()) == loaded

    answered(read)


@bounded
@given(data=st.data())
def test_a_published_policy_of_any_text_is_read_or_refused(
    place: Path, data: st.DataObject
) -> None:
    place.write_bytes(data.draw(damaged_json(POLICY)))
    answered(lambda: published_policy(place))


@bounded
@given(data=st.data())
def test_a_description_of_a_corpus_of_any_text_is_loaded_or_refused(
    place: Path, data: st.DataObject
) -> None:
    place.write_bytes(data.draw(damaged_toml(CORPUS)))
    answered(lambda: read_table(place))


@bounded
@given(data=st.data())
def test_an_invitation_of_any_text_is_read_or_refused(data: st.DataObject) -> None:
    table = {
        "address": "localhost:7443",
        "expires_at": 1_750_000_000,
        "federation": "loom",
        "member_id": "fr-bnf",
        "root_certificate": "MIIB",
        "token": base64.urlsafe_b64encode(bytes(32)).rstrip(b"=").decode(),
    }
    body = data.draw(damaged_json(table))
    check = hashlib.sha256(body).hexdigest()[:8]
    line = f"tapestry-invite-1.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}.{check}"
    answered(lambda: decode(line))
    answered(lambda: decode(data.draw(damaged(line.encode())).decode(errors="replace")))


def ledger(folder: Path) -> bytes:
    path = folder / "egress.jsonl"
    if not path.exists():
        written = EgressLedger(path, to="localhost:7443", clock=lambda: 5.0)
        for number in range(3):
            written.record("/tapestry.v1.TransferService/Commit", b"x", round_number=number)
        written.close()
    return path.read_bytes()


@bounded
@given(data=st.data())
def test_an_egress_ledger_of_any_bytes_is_read_or_refused(place: Path, data: st.DataObject) -> None:
    first, *others = ledger(place.parent).splitlines(keepends=True)
    line = data.draw(damaged_json(json.loads(first)))
    raw = data.draw(st.just(line + b"\n") | damaged(first + b"".join(others)))
    place.write_bytes(raw)

    def read() -> None:
        for departure in read_ledger(place):
            assert departure.bytes + departure.round >= 0
            assert departure.call + departure.to + departure.allowed_by is not None
            assert 0 <= departure.time < 1e12

    answered(read)

    def go_on() -> None:
        EgressLedger(place, to="localhost:7443", clock=lambda: 5.0).close()

    answered(go_on)


KERNEL_LINE = {
    "index": 0, "time": 5.0, "session": "a", "event": "look", "connections": 1, "sent": 2,
    "received": 3, "sent_to": {"a:1": 2}, "served": 0, "requests": 1, "messages": 1,
    "ledger_lines": 1, "ledger_head": HEX, "previous": "0" * 64,
}  # fmt: skip


@bounded
@given(data=st.data())
def test_a_record_of_the_kernels_counts_of_any_bytes_is_read_or_refused(
    place: Path, data: st.DataObject
) -> None:
    place.write_bytes(data.draw(damaged_json(KERNEL_LINE)) + b"\n")

    def read() -> None:
        for seen in read_kernel(place):
            assert seen.sent + seen.received + sum(seen.sent_to.values()) is not None
            assert seen.session + seen.event is not None

    answered(read)


# Nothing that comes decides how much memory is taken


def peak_of(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        answered(read)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["manifest.json", "card.json"])
def test_a_statement_of_a_gigabyte_is_refused_and_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    os.truncate(path, 2**30)
    assert peak_of(lambda: read_envelope(path, what="statement")) < 2**26


@pytest.mark.parametrize(
    "shape",
    [[2**62], [2**31, 2**31], [10**30], [0, 10**18]],
)
def test_a_header_that_promises_more_than_there_is_takes_no_memory(
    tmp_path: Path, shape: list[int]
) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 40]}
    header = {"__metadata__": {"format": "pt", "tapestry_tensors": "1"}, "w": entry}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(40))
    assert peak_of(lambda: open_vector_file(path)) < 2**24
    with pytest.raises(UntrustedError):
        open_vector_file(path)


def test_the_helpers_do_damage() -> None:
    """Without this, a mistake in them would make every test above pass."""
    outcomes: set[bool] = set()

    @settings(bounded, max_examples=40)
    @given(raw=damaged_json(json.loads(to_json(sign("application/x", b"{}", KEY)))))
    def check(raw: bytes) -> None:
        outcomes.add(answered(lambda: from_json(raw, what="it")) is None)

    check()
    assert outcomes == {True, False}
    assert canonical_json({"a": 1}) == text_of({"a": 1})
