"""What a member takes along when it leaves: a folder that proves itself, and can found anew.

```
export.json                  signed by the member: every file with its SHA-256
README.md                    what this is, for a person
checkpoint/                  the newest consensus checkpoint, as published, with its lineage
identity/                    membership, certificate, the federation's root; keys only if asked for
egress.jsonl  receipts/      what left the member, and what the coordinator acknowledged
egress-kernel.jsonl          what the member's system counted beside it
contributions/  policies/    the signed contributions of those receipts; the policies they left by
trainer/                     the inner optimizer's state, the residual of error feedback
node.toml  state.json        the member's own settings and policy, and where it stood
corpus.json  corpus.toml     what the corpus is, not what it says
corpus-history.jsonl         which sources took part in which rounds, if that was recorded
pool.txt                     the federation's open pool of text, if it has one
packed-corpus/               the text, tokenized; only if asked for
```
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.statements import (
    Count,
    HexDigest,
    MemberId,
    NotNegative,
    Positive,
    Receipt,
    Statement,
)
from tapestry.checkpoints.verify import verify_checkpoint, verify_content
from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.certificates import fingerprint
from tapestry.identity.envelopes import canonical_json
from tapestry.identity.proofs import require_key_proof

EXPORT_FILE = "export.json"
CHECKPOINT = "checkpoint"
RECEIPTS = "receipts"
LEDGER_NAME = "egress.jsonl"
OPTIMIZER_NAME = "trainer/optimizer.safetensors"
POOL_NAME = "pool.txt"
FORMAT = 1
_TYPE_PREFIX = "application/vnd.tapestry.export."
_NEEDED = (
    LEDGER_NAME,
    "corpus.json",
    "node.toml",
    "identity/membership.json",
    "identity/root.crt",
    "identity/tls.crt",
)

_ExportName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,4}$")
]


class ExportedFile(Statement):
    """A file of an export."""

    name: _ExportName
    """Relative to the export's folder."""
    size_bytes: Count
    digest: HexDigest
    """SHA-256."""


class Export(Statement):
    """What a member says of its export."""

    payload_type = f"{_TYPE_PREFIX}v{FORMAT}+json"

    federation: str
    genesis: HexDigest
    member_id: MemberId
    signing_key: HexDigest
    """Raw Ed25519 public key that signs this statement."""
    key_proof: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){8,80}$")]
    """Signature of the certificate's key over the signing key: `tapestry.identity.proofs`."""
    round: Count
    manifest: HexDigest
    """Of the checkpoint."""
    ledger_head: HexDigest
    receipts: Count
    created_at: NotNegative
    files: tuple[ExportedFile, ...]
    parameters: Positive
    software: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedExport:
    """An export that passed."""

    folder: Path
    export: Export
    lineage: Lineage
    has_card: bool
    """Whether the checkpoint has its model card, which needs the coordinator."""

    @property
    def checkpoint(self) -> Path:
        """The published checkpoint in it."""
        return self.folder / CHECKPOINT

    @property
    def pool(self) -> Path | None:
        """The federation's open pool of text, if it is here."""
        path = self.folder / POOL_NAME
        return path if path.is_file() else None

    @property
    def has_keys(self) -> bool:
        """Whether private keys are in it."""
        return any(entry.name.endswith(".key") for entry in self.export.files)


def exported_file(folder: Path, name: str) -> ExportedFile:
    """Hash the file `name` in `folder`."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ExportedFile(name=name, size_bytes=path.stat().st_size, digest=digest)


def open_export(
    folder: Path, *, on_bytes: Callable[[int, int], None] | None = None
) -> OpenedExport:
    """Verify an export: signature, every file, lineage, checkpoint, membership, receipts.

    Needs neither torch nor a network, nor the node. `on_bytes` is told how many bytes of the files
    were compared, and how many there are.

    Raises:
        ConfigError: The folder is no export, or one of a format that this version does not read.
        UntrustedError: Something is missing, changed, added, or signed by somebody else.
    """
    export = _statement(folder)
    _require_files(folder, export, on_bytes)
    lineage = verify_content(folder / CHECKPOINT, federation=export.genesis)
    if (lineage.newest_digest, lineage.newest.round) != (export.manifest, export.round):
        raise UntrustedError(f"{folder / CHECKPOINT}: not the checkpoint that the export names")
    _require_member(folder, export, lineage)
    _require_receipts(folder, export, lineage)
    has_card = (folder / CHECKPOINT / CARD_FILE).is_file()
    if has_card:
        verify_checkpoint(folder / CHECKPOINT, federation=export.genesis)
    return OpenedExport(folder=folder, export=export, lineage=lineage, has_card=has_card)


def _statement(folder: Path) -> Export:
    path = folder / EXPORT_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no {EXPORT_FILE} here; name a folder that `tapestry node leave --export` "
            "made"
        )
    envelope = read_envelope(path, what="export")
    kind = envelope.payload_type
    if kind != Export.payload_type and kind.startswith(_TYPE_PREFIX):
        raise ConfigError(
            f"{path}: an export of format {kind.removeprefix(_TYPE_PREFIX)[:20]}, this version of "
            f"Tapestry reads v{FORMAT}+json: use the version that made it"
        )
    claimed = Export.parsed(envelope.payload, what="export")
    key = bytes.fromhex(claimed.signing_key)
    return Export.opened(envelope, public_key=key, what="export")


def _require_files(
    folder: Path, export: Export, on_bytes: Callable[[int, int], None] | None
) -> None:
    """Refuse files that are not as signed, or that nobody signed."""
    listed = {entry.name for entry in export.files}
    for name in _NEEDED:
        if name not in listed:
            raise UntrustedError(f"{folder}: incomplete: {name} is not part of the export")
    done, whole = 0, sum(entry.size_bytes for entry in export.files)
    for entry in export.files:
        path = folder / entry.name
        if path.is_symlink() or not path.is_file():
            raise UntrustedError(f"{path}: missing; copy the export again, whole")
        found = exported_file(folder, entry.name)
        if found != entry:
            raise UntrustedError(
                f"{path}: damaged: {found.size_bytes:,} bytes with SHA-256 {found.digest[:16]}, "
                f"signed are {entry.size_bytes:,} with {entry.digest[:16]}; copy the export again"
            )
        done += entry.size_bytes
        if on_bytes is not None:
            on_bytes(done, whole)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and name not in {EXPORT_FILE, *listed}):
            raise UntrustedError(f"{path}: not part of the export; remove it")


def _require_member(folder: Path, export: Export, lineage: Lineage) -> None:
    """Refuse an export of somebody whom the federation's root did not name."""
    root_pem = (folder / "identity" / "root.crt").read_bytes()
    if fingerprint(root_pem).hex() != lineage.origin.root_certificate:
        raise UntrustedError(f"{folder}: identity/root.crt is not the root that genesis names")
    member = require_key_proof(
        bytes.fromhex(export.key_proof),
        bytes.fromhex(export.signing_key),
        certificate_pem=(folder / "identity" / "tls.crt").read_bytes(),
        root_pem=root_pem,
        federation=export.federation,
    )
    if member.member_id != export.member_id or export.federation != lineage.origin.federation:
        raise UntrustedError(
            f"{folder}: of {member.member_id} by its certificate, of {export.member_id} by what it "
            "says"
        )


def _require_receipts(folder: Path, export: Export, lineage: Lineage) -> None:
    names = [e.name for e in export.files if e.name.startswith(f"{RECEIPTS}/")]
    if len(names) != export.receipts:
        raise UntrustedError(f"{folder}: {len(names)} receipts, the export says {export.receipts}")
    for name in names:
        what = f"{folder / name}"
        receipt = Receipt.opened(
            read_envelope(folder / name, what=what), public_key=lineage.coordinator_key, what=what
        )
        if (receipt.member_id, receipt.genesis) != (export.member_id, export.genesis):
            raise UntrustedError(f"{what}: the receipt of another member")


def corpus_description(metas: list[dict[str, object]]) -> bytes:
    """Return `corpus.json`: figures and digests of packed corpora, and nothing that could be text.

    Args:
        metas: What the packing wrote down about each.
    """
    kept = [
        {
            key: value
            for key, value in meta.items()
            if isinstance(value, int | float)
            or (isinstance(value, str) and len(value) <= 64 and value.isalnum())
        }
        for meta in metas
    ]
    return canonical_json({"packed": kept})
