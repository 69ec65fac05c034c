"""A published checkpoint's folder: names in it, reading its statements, writing it whole.

```
model.safetensors config.json tokenizer.json ...   what transformers loads
README.md                                          the model card
bom.cdx.json                                       the bill of materials, CycloneDX
model.sig                                          signed: OpenSSF's form, for its tools
tapestry/manifest.json                             signed: what the checkpoint is
tapestry/policy.json                               what the federation had agreed upon
tapestry/round.jsonl                               signed: the plan, and what members sent to it
tapestry/lineage.jsonl                             the manifests from genesis to its parent
tapestry/ledger.json                               proof that the manifest is in the ledger
tapestry/ancestry.jsonl                            manifests of the federation it goes on from
tapestry/card.json                                 signed: README.md and what else is renewed
tapestry/results.json  tapestry/results.png        held-out bits per byte by round
tapestry/model-signing.pub                         the key of model.sig, bound by the card
```
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from tapestry.checkpoints.manifest import FileEntry
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import MAX_ENVELOPE_BYTES, Envelope, from_json, to_json
from tapestry.ledger.proof import PROOF_FILE
from tapestry.storage.atomic import (
    TEMPORARY_SUFFIX,
    replacing,
    sync_path,
    sync_tree,
    write_atomic,
)

STATEMENTS = "tapestry"
MANIFEST_FILE = "tapestry/manifest.json"
POLICY_JSON = "tapestry/policy.json"
ROUND_FILE = "tapestry/round.jsonl"
LINEAGE_FILE = "tapestry/lineage.jsonl"
CARD_FILE = "tapestry/card.json"
OWN_FILES = frozenset({MANIFEST_FILE, LINEAGE_FILE, CARD_FILE, PROOF_FILE})
"""Files that speak for themselves: signed, or checked link by link."""

_MAX_LINES_BYTES = 2**30


def folder_name(round_number: int) -> str:
    """Return the name of a checkpoint's folder, sortable by round."""
    return f"round-{round_number:06d}"


def file_entry(folder: Path, name: str) -> FileEntry:
    """Hash the file `name` in `folder`."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(name=name, size_bytes=path.stat().st_size, digest=digest)


def read_envelope(path: Path, *, what: str) -> Envelope:
    """Read one signed envelope in DSSE JSON.

    Raises:
        UntrustedError: The file is missing or not an envelope.
    """
    try:
        with path.open("rb") as file:
            return from_json(file.read(MAX_ENVELOPE_BYTES + 1), what=what)
    except OSError as error:
        raise UntrustedError(
            f"{what}: {path} cannot be read: {error.strerror}; a published checkpoint is a folder "
            "such as published/round-000001"
        ) from error


def read_lineage(folder: Path) -> list[Envelope]:
    """Return the envelopes of all manifests from genesis to this checkpoint's own, oldest first.

    Raises:
        UntrustedError: A file is missing or a line is not an envelope.
    """
    manifest = read_envelope(folder / MANIFEST_FILE, what="manifest")
    return [*read_envelopes(folder / LINEAGE_FILE, what="lineage"), manifest]


def read_round(folder: Path) -> list[Envelope]:
    """Return the plan of the checkpoint's round, and the contributions to it, as they were signed.

    Raises:
        UntrustedError: The file is missing, or a line is not an envelope.
    """
    return read_envelopes(folder / ROUND_FILE, what="round")


def write_round(folder: Path, envelopes: Sequence[Envelope]) -> None:
    """Write the plan of a round, and the contributions to it, below `folder`."""
    path = folder / ROUND_FILE
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, b"".join(to_json(envelope) + b"\n" for envelope in envelopes))


def read_envelopes(path: Path, *, what: str) -> list[Envelope]:
    """Return the envelopes in a file, one a line.

    Raises:
        UntrustedError: The file cannot be read, or a line is not an envelope.
    """
    try:
        if path.stat().st_size > _MAX_LINES_BYTES:
            raise UntrustedError(f"{what}: {path} is larger than {_MAX_LINES_BYTES:,} bytes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UntrustedError(f"{what}: {path} cannot be read: {error.strerror}") from error
    return [from_json(line, what=f"{what}, line {i}") for i, line in enumerate(lines, 1)]


def write_statements(folder: Path, lineage: Sequence[Envelope]) -> None:
    """Write manifest and lineage below `folder`; the last of `lineage` is the folder's own."""
    (folder / STATEMENTS).mkdir(exist_ok=True)
    with replacing(folder / LINEAGE_FILE) as file:
        for envelope in islice(lineage, len(lineage) - 1):
            file.write(to_json(envelope) + b"\n")
    write_atomic(folder / MANIFEST_FILE, to_json(lineage[-1]))


@contextmanager
def building(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a folder that takes the name `target` only if the block ends without an error.

    An unfinished one from a crash is removed first. Without `durable` nobody waits for the disk: a
    machine that goes down may leave files of any content, which are to be verified before use.

    Raises:
        OSError: The disk is full or the parent cannot be written; nothing is left behind.
    """
    temporary = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if durable:
            sync_tree(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if durable:
        sync_path(target.parent)
