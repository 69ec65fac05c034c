"""What a member hands to others, made wrong by whoever holds its key: refused, no traceback."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapestry.checkpoints.exports import EXPORT_FILE, Export, exported_file, open_export
from tapestry.checkpoints.folder import file_entry, read_envelope, read_lineage
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.config import Settings, load_settings
from tapestry.identity.envelopes import sign, to_json
from tapestry.identity.keys import public_bytes
from tapestry.identity.membership import MEMBERSHIP_FILE, IdentityFolder
from tapestry.wire.egress import EgressLedger
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, NetworkSettings
from tapestry_node.exporting import contents, export_to
from tapestry_node.home import NodeHome, NodeSettings, NodeState
from tapestry_node.keeping import keep_policy
from tapestry_node.lineage import LineageFile
from tapestry_node.policy import Policy
from tapestry_node.reporting import STATEMENT_FILE, ReportStatement, export, verify_report
from tests.conftest import FOUNDED_AT, Federation
from tests.damaging import answered, changed, damaged, damaged_json, damaged_toml, text_of
from tests.members import joined_member

bounded = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, federation: Federation) -> NodeHome:
    """A member's folder with a ledger and a receipt."""
    stored = federation.closed.contributions[1]
    made = joined_member(
        tmp_path_factory.mktemp("member") / "node",
        federation.home.load_authority(),
        member_id="is-lbs",
        issued=datetime.now(UTC),
        coordinator_key=public_bytes(federation.home.load_signing_key()).hex(),
        genesis=federation.closed.plan.genesis,
    )
    made.load_settings()
    keep_policy(made, Policy())
    ledger = EgressLedger(made.egress, to="localhost:1", clock=lambda: FOUNDED_AT)
    ledger.allowed_by = Policy().digest()
    for call in ("RoundsService/Report", "TransferService/PutFragment", "TransferService/Commit"):
        ledger.record(f"/tapestry.v1.{call}", b"x", round_number=1)
    ledger.close()
    shutil.copytree(federation.newest, made.checkpoint(1))
    digest = verify_checkpoint(federation.newest).manifest_digest
    made.save_state(NodeState(round=1, manifest=digest, contributed=1, objective="causal-lm"))
    LineageFile(made.lineage).replace(read_lineage(federation.newest))
    (made.receipts / "round-000001.json").write_bytes(to_json(stored.receipt))
    (made.receipts / "round-000001.contribution.json").write_bytes(to_json(stored.envelope))
    return made


# A report, whose member may have signed anything


@pytest.fixture(scope="module")
def report(home: NodeHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report") / "report"
    export(home, target, home.identity.signing_key(), head=None, now=FOUNDED_AT)
    verify_report(target)
    return target


def signed_anew(home: NodeHome, folder: Path) -> None:
    """Sign whatever is in a report's folder now."""
    path = folder / STATEMENT_FILE
    key = home.identity.signing_key()
    was = ReportStatement.opened(
        read_envelope(path, what="statement"), public_key=public_bytes(key), what="statement"
    )
    names = [
        str(one.relative_to(folder))
        for one in sorted(folder.rglob("*"))
        if one.is_file() and one.name != STATEMENT_FILE
    ]
    entries = tuple(file_entry(folder, name) for name in names)
    replace(path, to_json(was.model_copy(update={"files": entries}).signed(key)))


def damage_of(path: Path) -> st.SearchStrategy[bytes]:
    """Other content for a file: well-formed where that gets further."""
    valid = path.read_bytes()
    if not valid:
        return st.binary(min_size=1, max_size=40)
    if path.suffix == ".json":
        return damaged_json(json.loads(valid))
    if path.suffix == ".jsonl":
        first, *others = valid.splitlines(keepends=True)
        line = damaged_json(json.loads(first)).map(lambda one: one + b"\n")
        return damaged(valid) | line | line.map(lambda one: one + b"".join(others))
    return damaged(valid)


def copied(folder: Path, into: Path) -> Path:
    """A copy whose files are to be replaced, never written to."""
    return Path(shutil.copytree(folder, into / folder.name, copy_function=os.link))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def names_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@settings(bounded, max_examples=120)
@given(data=st.data())
def test_a_report_of_any_content_is_verified_or_refused(
    home: NodeHome, report: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copied(report, tmp_path_factory.mktemp("copy"))
    name = data.draw(st.sampled_from(names_of(folder)))
    raw = data.draw(damage_of(folder / name))
    if data.draw(st.integers(0, 9)):
        replace(folder / name, raw)
    else:
        (folder / name).unlink()
        raw = b""
    is_signed = name != STATEMENT_FILE and data.draw(st.booleans())
    if is_signed:
        signed_anew(home, folder)
    refusal = answered(lambda: verify_report(folder))
    if not is_signed and name != STATEMENT_FILE and raw != (report / name).read_bytes():
        assert refusal is not None
    shutil.rmtree(folder.parent)


# An export, the same


@pytest.fixture(scope="module")
def taken(home: NodeHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "export"
    made = contents(home, card=home.checkpoint(1), with_keys=False, with_packed_corpus=False)
    export_to(target, home, made, now=FOUNDED_AT)
    return target


@settings(bounded, max_examples=40)
@given(data=st.data())
def test_an_export_of_any_content_is_verified_or_refused(
    home: NodeHome, taken: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copied(taken, tmp_path_factory.mktemp("copy"))
    statement = Export.parsed(read_envelope(folder / EXPORT_FILE, what="export").payload, what="it")
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([n for n in names_of(folder) if n != EXPORT_FILE]))
        if data.draw(st.integers(0, 9)):
            replace(folder / name, data.draw(damage_of(folder / name)))
        else:
            (folder / name).unlink()
        files = [exported_file(folder, n) for n in names_of(folder) if n != EXPORT_FILE]
        statement = statement.model_copy(update={"files": tuple(files)})
        payload = statement.payload()
    else:
        payload = text_of(data.draw(changed(json.loads(statement.payload()))))
    signed = sign(Export.payload_type, payload, home.identity.signing_key())
    replace(folder / EXPORT_FILE, to_json(signed))
    answered(lambda: open_export(folder))
    shutil.rmtree(folder.parent)


# The files of a node's own that people edit or machines damage


@pytest.mark.parametrize("kind", [NodeSettings, CoordinatorSettings])
def test_settings_of_any_text_are_loaded_or_refused(tmp_path: Path, kind: type[Settings]) -> None:
    valid = (
        NodeSettings()
        if kind is NodeSettings
        else CoordinatorSettings(
            network=NetworkSettings(address="localhost:7443", enrolment_address="localhost:7444"),
            inner=InnerTable(steps=10, sequences=1, sequence_tokens=8, learning_rate=1e-3),
        )
    ).model_dump(mode="json", exclude_none=True)
    path = tmp_path / "settings.toml"

    @settings(bounded, max_examples=60)
    @given(raw=damaged_toml(valid))
    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        answered(lambda: load_settings(path, kind))

    check()


@bounded
@given(data=st.data())
def test_a_membership_of_any_text_is_loaded_or_refused(
    home: NodeHome, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    valid = json.loads((home.identity.folder / MEMBERSHIP_FILE).read_text())
    (folder / MEMBERSHIP_FILE).write_bytes(data.draw(damaged_json(valid)))

    def read() -> None:
        membership = IdentityFolder(folder).load()
        assert membership.genesis + membership.coordinator_key + membership.address is not None

    answered(read)
