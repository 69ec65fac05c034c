"""A report of what left, signed by the node, that somebody else can verify without the node.

```
report.html           for people: totals, plots, findings
report.json           the same for programs; leakage figures only if the institution chose to
egress.jsonl          the ledger, as it was
egress-kernel.jsonl   what the kernel says was sent
policies/ receipts/   the rules under which it left; the coordinator's acknowledgements
root.crt  member.crt  the federation's root and this member's certificate
federation.json       names and public keys
statement.json        digests of all of these, signed with the node's signing key (DSSE)
```
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from tapestry.checkpoints.folder import building, file_entry, read_envelope
from tapestry.checkpoints.manifest import FileEntry
from tapestry.checkpoints.statements import HexDigest, MemberId, Statement
from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.certificates import read_member_certificate
from tapestry.identity.envelopes import to_json
from tapestry.identity.keys import public_bytes
from tapestry.identity.membership import Membership
from tapestry.wire.egress import EGRESS_FILE, Moment
from tapestry.wire.kernel import KERNEL_FILE
from tapestry_node.auditing import Evidence, audit
from tapestry_node.home import NodeHome
from tapestry_node.rendering import page

STATEMENT_FILE = "statement.json"
_REPORT_FILE, _PAGE_FILE, _FEDERATION_FILE = "report.json", "report.html", "federation.json"
_ROOT_FILE, _CERTIFICATE_FILE = "root.crt", "member.crt"
_POLICIES, _RECEIPTS = "policies", "receipts"
_NEEDED = (
    EGRESS_FILE, KERNEL_FILE, _REPORT_FILE, _FEDERATION_FILE, _ROOT_FILE, _CERTIFICATE_FILE,
)  # fmt: skip


class _FederationTable(Statement):
    """Names and public keys, which the files beside it must be signed with."""

    federation: Annotated[str, Field(max_length=64)]
    genesis: HexDigest
    member_id: MemberId
    coordinator_key: HexDigest
    member_key: HexDigest


class ReportStatement(Statement):
    """What a node signs about a report."""

    payload_type = "application/vnd.tapestry.audit.v1+json"

    genesis: HexDigest
    member_id: MemberId
    created_at: Moment
    """Unix seconds."""
    head: HexDigest
    """Of the ledger."""
    files: tuple[FileEntry, ...]


def evidence_of(home: NodeHome, membership: Membership, *, member_key: bytes) -> Evidence:
    """Return what an audit of a node's folder looks at."""
    return Evidence(
        ledger=home.egress,
        kernel=home.kernel,
        policies=home.policies,
        receipts=home.receipts,
        coordinator_key=bytes.fromhex(membership.coordinator_key),
        member_key=member_key,
    )


def export(
    home: NodeHome,
    target: Path,
    key: Ed25519PrivateKey,
    *,
    head: str | None,
    now: float,
    leakage: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, Any]:
    """Write a signed report into a new folder; return what the audit found.

    Args:
        home: Of the node.
        target: The folder.
        key: The node's signing key.
        head: A head of the ledger that an earlier audit printed.
        now: Unix seconds.
        leakage: Figures of the last contribution, with their `words`; None: they are not told.
        on_progress: Told how many bytes of the ledger were read, of how many.

    Raises:
        ConfigError: The folder exists.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder")
    membership = home.identity.load()
    with building(target) as folder:
        _copy(home, folder)
        table = {
            "federation": membership.federation,
            "genesis": membership.genesis,
            "member_id": membership.member_id,
            "coordinator_key": membership.coordinator_key,
            "member_key": public_bytes(key).hex(),
        }
        (folder / _FEDERATION_FILE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        found = audit(_evidence_in(folder, table), head=head, on_progress=on_progress)
        report = {**table, "created_at": now, **found, "ledger": EGRESS_FILE, "leakage": leakage}
        (folder / _REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / _PAGE_FILE).write_text(page(report, folder / EGRESS_FILE), encoding="utf-8")
        statement = ReportStatement(
            genesis=membership.genesis,
            member_id=membership.member_id,
            created_at=now,
            head=found["head"],
            files=tuple(file_entry(folder, name) for name in _names(folder)),
        )
        (folder / STATEMENT_FILE).write_bytes(to_json(statement.signed(key)))
    return {**found, "ledger": str(target / EGRESS_FILE)}


def _copy(home: NodeHome, folder: Path) -> None:
    """Copy what is proof; nothing that is secret, and nothing of the text."""
    for source, name in ((home.kernel, KERNEL_FILE), (home.egress, EGRESS_FILE)):
        data = source.read_bytes() if source.is_file() else b""
        (folder / name).write_bytes(data[: data.rfind(b"\n") + 1])  # the node may be writing
    for source, name in ((home.policies, _POLICIES), (home.receipts, _RECEIPTS)):
        (folder / name).mkdir()
        for path in sorted(source.glob("*")):
            if path.suffix in {".json", ".toml"} and path.is_file():
                shutil.copyfile(path, folder / name / path.name)
    (folder / _ROOT_FILE).write_bytes(home.identity.root_pem())
    (folder / _CERTIFICATE_FILE).write_bytes(home.identity.certificate_pem())


def _evidence_in(folder: Path, table: dict[str, Any]) -> Evidence:
    return Evidence(
        ledger=folder / EGRESS_FILE,
        kernel=folder / KERNEL_FILE,
        policies=folder / _POLICIES,
        receipts=folder / _RECEIPTS,
        coordinator_key=bytes.fromhex(table["coordinator_key"]),
        member_key=bytes.fromhex(table["member_key"]),
    )


def _names(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != STATEMENT_FILE
    )


def verify_report(
    folder: Path,
    *,
    genesis: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, Any]:
    """Verify a report without the node; return what it shows.

    Args:
        folder: As exported.
        genesis: Begins the digest of the federation's genesis, if the reader knows it.
        on_progress: Told how many bytes of the ledger were read, of how many.

    Raises:
        UntrustedError: Something was changed, left out, or does not follow from the files.
    """
    table = _read_table(folder)
    key = bytes.fromhex(table["member_key"])
    envelope = read_envelope(folder / STATEMENT_FILE, what="statement of the report")
    statement = ReportStatement.opened(envelope, public_key=key, what="statement of the report")
    _require_files(folder, statement)
    if (statement.genesis, statement.member_id) != (table["genesis"], table["member_id"]):
        raise UntrustedError(f"{_FEDERATION_FILE}: is not of the member that signed the report")
    if genesis is not None and not statement.genesis.startswith(genesis):
        raise UntrustedError(
            f"the report is of the federation {statement.genesis[:16]}, expected {genesis[:16]}"
        )
    certificate = _require_certificate(folder, table)
    report = _read_report(folder)
    found = audit(_evidence_in(folder, table), on_progress=on_progress)
    for name, value in {**found, "ledger": EGRESS_FILE}.items():
        if json.loads(json.dumps(value)) != report.get(name) and name != "problems":
            raise UntrustedError(
                f"{_REPORT_FILE}: {name!r} is not what the files beside it give; the report was "
                "made by other software, or does not say what they say"
            )
    acknowledged = [r for r in found["receipts"] if len(r["shown"]) >= 3 and not r["problem"]]
    return {
        **table,
        "created_at": statement.created_at,
        "certificate_until": certificate,
        "head": found["head"],
        "requests": found["requests"],
        "bytes": found["bytes"],
        "rounds_acknowledged": [r["round"] for r in acknowledged],
        "kernel": found["kernel"]["says"],
        "problems": [*found["problems"], *_missing_from(report, found)],
        "leakage": report.get("leakage"),
        "not_shown": _not_shown(found, acknowledged, report.get("leakage")),
    }


def _missing_from(report: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return problems that the node saw and the copies do not show, such as a head it knew."""
    return [one for one in report.get("problems", []) if one not in found["problems"]]


def _not_shown(
    found: dict[str, Any], acknowledged: list[dict[str, Any]], leakage: dict[str, Any] | None
) -> list[str]:
    words = [
        f"round {row['round']}: {what}" for row in found["receipts"] for what in row["not_shown"]
    ]
    if not acknowledged:
        words.append(
            "that the coordinator knows the key that signed this report: no receipt of it is here"
        )
    if leakage is not None:
        words.append(
            f"what is said of the contribution to round {leakage.get('round')}: the institution "
            "measured it on text that only it has"
        )
    words.append(
        "that the coordinator's key is that of the federation you think of: compare genesis and "
        "root with somebody you trust"
    )
    return words


def _read_table(folder: Path) -> dict[str, Any]:
    path = folder / _FEDERATION_FILE
    try:
        table = _FederationTable.parsed(path.read_bytes(), what=str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no report here; expected a folder that `tapestry node audit --export` made"
        ) from None
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
    return table.model_dump()


def _read_report(folder: Path) -> dict[str, Any]:
    """Return the figures that the report claims; whether they are right is seen later."""
    path = folder / _REPORT_FILE
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UntrustedError(f"{path}: cannot be read: {error}") from error
    if (
        not isinstance(report, dict)
        or not isinstance(report.get("problems", []), list)
        or not isinstance(report.get("leakage"), dict | None)
    ):
        raise UntrustedError(f"{path}: not the figures of a report")
    return report


def _require_files(folder: Path, statement: ReportStatement) -> None:
    """Refuse a folder that has not exactly the files that were signed."""
    listed = {entry.name: entry for entry in statement.files}
    for name in _NEEDED:
        if name not in listed:
            raise UntrustedError(f"{folder}: incomplete: {name} is not part of the report")
    there = set(_names(folder))
    for name in sorted(there ^ set(listed)):
        what = "nobody signed it" if name in there else "it is missing"
        raise UntrustedError(f"{folder / name}: {what}")
    for name, entry in listed.items():
        if file_entry(folder, name) != entry:
            raise UntrustedError(f"{folder / name}: was changed after the node signed the report")


def _require_certificate(folder: Path, table: dict[str, Any]) -> str:
    """Refuse a certificate that the root did not issue for this member; return its end."""
    pem = (folder / _CERTIFICATE_FILE).read_bytes()
    named = read_member_certificate(pem, federation=table["federation"])
    try:
        root = x509.load_pem_x509_certificate((folder / _ROOT_FILE).read_bytes())
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise UntrustedError(f"{_CERTIFICATE_FILE}: not issued by the root beside it") from error
    if named.member_id != table["member_id"]:
        raise UntrustedError(f"{_CERTIFICATE_FILE}: names {named.member_id}")
    return named.not_after.strftime("%Y-%m-%d %H:%M UTC")
