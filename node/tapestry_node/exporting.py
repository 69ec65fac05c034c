"""An export, written: every file copied and hashed, signed, verified; whole or not there.

It is built beside its final name, under a name that begins with a dot. What an attempt that was
cut short has copied is recognised by its digest and kept, so that the next one goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tapestry.checkpoints.exports import (
    CHECKPOINT,
    EXPORT_FILE,
    LEDGER_NAME,
    OPTIMIZER_NAME,
    POOL_NAME,
    RECEIPTS,
    Export,
    ExportedFile,
    corpus_description,
    open_export,
)
from tapestry.checkpoints.folder import CARD_FILE, LINEAGE_FILE, MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Card, Manifest, verify_lineage
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import to_json
from tapestry.identity.keys import load_tls_key, public_bytes
from tapestry.identity.proofs import prove_key
from tapestry.storage.atomic import TEMPORARY_SUFFIX, replacing, sync_path, sync_tree, write_atomic
from tapestry.wire.egress import ledger_head
from tapestry_node.home import NodeHome
from tapestry_node.keeping import CONTRIBUTION_SUFFIX
from tapestry_node.lineage import LineageFile
from tapestry_node.policy import SETTINGS_FILE

_BLOCK_BYTES = 2**22
_SPARE_BYTES = 2**20
_KEYS = ("identity/tls.key", "identity/signing.key")
_README = """# What {member} took along from {federation}

An export of a Tapestry node. `export.json` is signed and names every file with its SHA-256.

    tapestry node verify-export THIS_FOLDER              is it whole, and enough to found anew?
    tapestry coordinator init fed --name NAME --from THIS_FOLDER     found a new federation

`checkpoint/` is a model that transformers loads: checkpoint {round} of the federation. Nothing here
holds the institution's text{packed}.{keys}
"""

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of the export before it is there."""

    name: str
    source: Path | bytes
    mode: int = 0o600

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Everything that goes into an export."""

    round: int
    manifest: Manifest
    manifest_digest: str
    pieces: Sequence[Piece]

    @property
    def size_bytes(self) -> int:
        """How long all files are together."""
        return sum(piece.size_bytes for piece in self.pieces)


def newest_here(home: NodeHome) -> Path:
    """Return the newest consensus checkpoint in the node's folder.

    Raises:
        ConfigError: There is none.
    """
    state = home.load_state()
    found = [folder for number in range(state.round, max(-1, state.round - 4), -1)
             if (folder := home.checkpoint(number)).is_dir()]  # fmt: skip
    if not found:
        raise ConfigError(
            f"{home.folder}: no consensus checkpoint is here yet: run the node once while the "
            "coordinator answers"
        )
    return found[0]


def manifest_here(home: NodeHome, coordinator_key: bytes) -> tuple[Manifest, str, Path]:
    """Return the newest checkpoint that is here: manifest, its digest, folder.

    Raises:
        ConfigError: None is here.
        UntrustedError: It is not signed by the federation's coordinator.
    """
    folder = newest_here(home)
    envelope = read_envelope(folder / MANIFEST_FILE, what="manifest")
    manifest = Manifest.opened(envelope, public_key=coordinator_key, what="manifest")
    return manifest, payload_digest(envelope), folder


def contents(
    home: NodeHome, *, card: Path | None, with_keys: bool, with_packed_corpus: bool
) -> Contents:
    """Return what an export of this node is made of.

    Args:
        home: Of the node, which does not run.
        card: Folder with the model card of the newest checkpoint and its files, if it is here.
        with_keys: Take the private keys along.
        with_packed_corpus: Take the text along, tokenized.

    Raises:
        ConfigError: No checkpoint, or not its whole lineage, is here.
        UntrustedError: The checkpoint or its lineage does not verify.
    """
    membership, state = home.identity.load(), home.load_state()
    folder = newest_here(home)
    envelope = read_envelope(folder / MANIFEST_FILE, what="manifest")
    key = bytes.fromhex(membership.coordinator_key)
    manifest = Manifest.opened(envelope, public_key=key, what="manifest")
    links = LineageFile(home.lineage).read()[: manifest.round + 1]
    if not links or payload_digest(links[-1]) != payload_digest(envelope):
        raise ConfigError(
            f"{home.lineage}: does not lead to checkpoint {manifest.round}: run the node once "
            "while the coordinator answers, which completes it"
        )
    verify_lineage(links, pinned=membership.genesis)
    if not home.egress.is_file():
        raise ConfigError(f"{home.egress}: missing; restore it from a backup")
    files = [Piece(f"{CHECKPOINT}/{e.name}", folder / e.name, 0o644) for e in manifest.files]
    files += [
        Piece(f"{CHECKPOINT}/{MANIFEST_FILE}", to_json(envelope), 0o644),
        Piece(
            f"{CHECKPOINT}/{LINEAGE_FILE}",
            b"".join(to_json(link) + b"\n" for link in links[:-1]),
            0o644,
        ),
        *_card_pieces(card, payload_digest(envelope), key),
        *_own(home, state.contributed),
        *_identity(home, with_keys=with_keys),
    ]
    if with_packed_corpus:
        files += _packed(home)
    readme = _README.format(
        member=membership.member_id,
        federation=membership.federation,
        round=manifest.round,
        packed=" but `packed-corpus/`, which is that text in another form"
        if with_packed_corpus
        else "",
        keys=" `identity/` holds private keys: guard them." if with_keys else "",
    )
    files.append(Piece("README.md", readme.encode(), 0o644))
    return Contents(
        round=manifest.round,
        manifest=manifest,
        manifest_digest=payload_digest(envelope),
        pieces=sorted(files, key=lambda piece: piece.name),
    )


def _card_pieces(folder: Path | None, manifest: str, key: bytes) -> list[Piece]:
    if folder is None or not (folder / CARD_FILE).is_file():
        return []
    card = Card.opened(read_envelope(folder / CARD_FILE, what="card"), public_key=key, what="card")
    if card.manifest != manifest:
        return []
    names = [CARD_FILE, *(entry.name for entry in card.files)]
    return [Piece(f"{CHECKPOINT}/{name}", folder / name, 0o644) for name in names]


def _own(home: NodeHome, contributed: int) -> list[Piece]:
    """Return the node's own records: settings, ledger, receipts, states, the corpus described."""
    metas = [
        meta
        for path in sorted((home.folder / "corpus").glob("*/corpus.json"))
        if isinstance(meta := json.loads(path.read_text(encoding="utf-8")), dict)
    ]
    home.load_settings()
    pools = sorted((home.folder / "pool").glob("*.txt"), key=lambda path: path.stat().st_mtime)
    maybe = [
        (OPTIMIZER_NAME, home.trainer_state(contributed)),
        ("trainer/residual.f32", home.residual),
        ("corpus.toml", home.folder / "corpus.toml"),
        ("state.json", home.folder / "state.json"),
        *((POOL_NAME, pool) for pool in pools[-1:]),
        ("corpus-history.jsonl", home.folder / "corpus" / "history.jsonl"),
        ("egress-kernel.jsonl", home.folder / "egress-kernel.jsonl"),
    ]
    receipts = sorted(home.receipts.glob("*.json"))
    return [
        Piece(LEDGER_NAME, home.egress),
        Piece(SETTINGS_FILE, home.folder / SETTINGS_FILE),
        Piece("corpus.json", corpus_description(metas)),
        *(Piece(name, path) for name, path in maybe if path.is_file()),
        *(Piece(f"policies/{path.name}", path) for path in sorted(home.policies.glob("*.toml"))),
        *(
            Piece(f"{_folder_of(path)}/{path.name.replace(CONTRIBUTION_SUFFIX, '')}", path)
            for path in receipts
        ),
    ]


def _folder_of(path: Path) -> str:
    """Return where a receipt goes, or the contribution that it is for."""
    return "contributions" if path.stem.endswith(CONTRIBUTION_SUFFIX) else RECEIPTS


def _identity(home: NodeHome, *, with_keys: bool) -> list[Piece]:
    names = ["membership.json", "root.crt", "tls.crt"]
    pieces = [Piece(f"identity/{name}", home.identity.folder / name) for name in names]
    if with_keys:
        pieces += [Piece(name, home.folder / name, 0o600) for name in _KEYS]
    return pieces


def _packed(home: NodeHome) -> Iterable[Piece]:
    corpus = home.folder / "corpus"
    for path in sorted(corpus.rglob("*")):
        name = path.relative_to(corpus).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield Piece(f"packed-corpus/{name}", path)


def export_to(
    target: Path, home: NodeHome, made: Contents, *, now: float, on_bytes: OnBytes | None = None
) -> None:
    """Write an export to the new folder `target`, and verify it there.

    Args:
        target: Must not exist.
        home: Of the node.
        made: What it is made of.
        now: Unix seconds.
        on_bytes: Told of what was copied, or found copied.

    Raises:
        ConfigError: The disk is too small or cannot be written; what was copied stays for the next
            attempt.
        UntrustedError: What was written does not verify.
    """
    partial = unfinished(target)
    try:
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.chmod(0o700)
        _remove_others(partial, {piece.name for piece in made.pieces})
        _require_space(partial, made)
        files = tuple(_place(partial, piece, on_bytes) for piece in made.pieces)
        statement = _statement(home, made, files, now=now).signed(home.identity.signing_key())
        write_atomic(partial / EXPORT_FILE, to_json(statement))
        open_export(partial)
        sync_tree(partial)
        partial.rename(target)
        sync_path(target.parent)
    except OSError as error:
        raise ConfigError(
            f"{target}: cannot be written: {error.strerror}; what is copied so far stays in "
            f"{partial}, and the same command goes on with it"
        ) from error


def unfinished(target: Path) -> Path:
    """Return where an export is built."""
    return target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")


def _statement(
    home: NodeHome, made: Contents, files: tuple[ExportedFile, ...], *, now: float
) -> Export:
    membership, signing = home.identity.load(), public_bytes(home.identity.signing_key())
    tls_key = load_tls_key(home.identity.folder / "tls.key")
    return Export(
        federation=membership.federation,
        genesis=membership.genesis,
        member_id=membership.member_id,
        signing_key=signing.hex(),
        key_proof=prove_key(tls_key, signing).hex(),
        round=made.round,
        manifest=made.manifest_digest,
        parameters=made.manifest.elements,
        ledger_head=ledger_head(home.egress),
        receipts=sum(entry.name.startswith(f"{RECEIPTS}/") for entry in files),
        created_at=now,
        files=files,
        software={"tapestry": version("tapestry-fl")},
    )


def _remove_others(partial: Path, wanted: set[str]) -> None:
    """Remove what an earlier attempt has left that this one does not take along."""
    for path in partial.rglob("*"):
        if path.is_symlink() or (
            path.is_file() and path.relative_to(partial).as_posix() not in wanted
        ):
            path.unlink()


def _require_space(partial: Path, made: Contents) -> None:
    there = sum(
        (partial / piece.name).stat().st_size
        for piece in made.pieces
        if (partial / piece.name).is_file()
    )
    needed = made.size_bytes - there + _SPARE_BYTES
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise ConfigError(
            f"{partial.parent}: the export needs {needed:,} bytes more, {free:,} are free: make "
            "room, or name a folder on another disk"
        )


def _place(partial: Path, piece: Piece, on_bytes: OnBytes | None) -> ExportedFile:
    """Copy a file, unless it is there; return its name, size and digest."""
    target = partial / piece.name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    if target.is_file() and target.stat().st_size == piece.size_bytes:
        for block in _blocks(piece.source):
            digest.update(block)
        with target.open("rb") as file:
            is_there = hashlib.file_digest(file, "sha256").digest() == digest.digest()
        if is_there:
            target.chmod(piece.mode)
            if on_bytes is not None:
                on_bytes(piece.size_bytes)
            return _entry(piece, digest.hexdigest(), piece.size_bytes)
        digest = hashlib.sha256()
    size = 0
    with replacing(target, mode=piece.mode) as out:
        for block in _blocks(piece.source):
            out.write(block)
            digest.update(block)
            size += len(block)
            if on_bytes is not None:
                on_bytes(len(block))
    return _entry(piece, digest.hexdigest(), size)


def _entry(piece: Piece, digest: str, size: int) -> ExportedFile:
    return ExportedFile(name=piece.name, size_bytes=size, digest=digest)


def _blocks(source: Path | bytes) -> Iterable[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
