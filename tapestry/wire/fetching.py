"""Checkpoints down: manifests, lineage, and files by digest, resumable.

A file arrives under a temporary name that carries its digest, goes on where it broke off, and
takes its place only after its SHA-256 is what the signed manifest says.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from tapestry.checkpoints.folder import (
    CARD_FILE,
    MANIFEST_FILE,
    building,
    read_envelope,
    write_statements,
)
from tapestry.checkpoints.manifest import Card, FileEntry, Lineage, Manifest, verify_lineage
from tapestry.checkpoints.stepping import write_stepped
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import RejectedError, UntrustedError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.ledger.heads import origin_of
from tapestry.ledger.proof import PROOF_FILE, verify_ledger_proof
from tapestry.storage.arriving import ArrivingFile
from tapestry.storage.atomic import replacing, write_atomic
from tapestry.storage.spares import Spares
from tapestry.v1 import transfer_pb2, transfer_pb2_grpc
from tapestry.wire.bulk import BulkStub
from tapestry.wire.limits import CALL_SECONDS, MAX_FETCH_SECONDS
from tapestry.wire.messages import envelope_value
from tapestry.wire.statuses import errors_from_status

_BLOCK_BYTES = 2**20

OnBytes = Callable[[int], None]
"""Called with the number of bytes that just arrived."""


class Fetcher:
    """Reads published things from a coordinator."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        """Call over `channel`; `address` is for messages."""
        self._stub = transfer_pb2_grpc.TransferServiceStub(channel)
        self._bulk = BulkStub(channel)
        self._address = address

    def describe(self, round_number: int | None = None) -> tuple[Envelope, Envelope]:
        """Return manifest and card of a checkpoint, not yet verified; None: the newest."""
        request = transfer_pb2.DescribeRequest(round=round_number)
        with errors_from_status(self._address):
            response = self._stub.Describe(request, timeout=CALL_SECONDS)
        return envelope_value(response.manifest), envelope_value(response.card)

    def lineage(self, last_round: int) -> list[Envelope]:
        """Return the manifests from genesis to `last_round`, not yet verified."""
        request = transfer_pb2.LineageRequest(last_round=last_round)
        with errors_from_status(self._address):
            stream = self._stub.Lineage(request, timeout=MAX_FETCH_SECONDS)
            return [envelope_value(response.manifest) for response in stream]

    def fetch(
        self,
        entry: FileEntry,
        parts: Path,
        *,
        on_bytes: OnBytes | None = None,
        spares: Spares | None = None,
    ) -> Path:
        """Return the path of a fetched and verified file below `parts`; not yet durable.

        Args:
            entry: Size and digest, from a verified statement.
            parts: Folder of unfinished downloads; a later call goes on with what is there.
            on_bytes: Told of progress.
            spares: Whose space may be used again.

        Raises:
            UnavailableError: The line broke; call again.
            UntrustedError: The bytes are not those of the digest; they are removed.
            OSError: The disk is full.
        """
        parts.mkdir(parents=True, exist_ok=True)
        path = parts / entry.digest
        was_there = True
        while was_there:  # what an earlier process left may be damaged: then once more from nothing
            with ArrivingFile(path, entry.size_bytes, spares=spares) as file:
                was_there = file.have > 0
                digest = self._receive(entry, file, on_bytes)
                if (digest, file.have) == (entry.digest, entry.size_bytes):
                    file.finish()
                    return path
                file.remove()
        raise UntrustedError(
            f"{entry.name}: the coordinator sent bytes that are not those of its own manifest"
        )

    def _receive(self, entry: FileEntry, file: ArrivingFile, on_bytes: OnBytes | None) -> str:
        """Complete `file`; return the hex SHA-256 of the whole."""
        whole = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            whole.update(block)
        if file.have < entry.size_bytes:
            request = transfer_pb2.FetchRequest(
                digest=bytes.fromhex(entry.digest), offset_bytes=file.have
            )
            with errors_from_status(self._address):
                for data in self._bulk.fetch(request, timeout=MAX_FETCH_SECONDS):
                    if file.have + len(data) > entry.size_bytes:
                        return "longer than its manifest says"
                    file.append(data)
                    whole.update(data)
                    if on_bytes is not None:
                        on_bytes(len(data))
        return whole.hexdigest()

    def sample(
        self, entry: FileEntry, *, most_bytes: int, most_seconds: float
    ) -> tuple[int, float]:
        """Fetch the beginning of a file and drop it, to see how fast it comes.

        Args:
            entry: Of what is published.
            most_bytes: When to stop.
            most_seconds: The same; what comes last is counted.

        Returns:
            Bytes that came, and seconds that they took.
        """
        request = transfer_pb2.FetchRequest(digest=bytes.fromhex(entry.digest))
        came, began = 0, time.monotonic()
        with errors_from_status(self._address):
            stream = self._bulk.fetch(request, timeout=MAX_FETCH_SECONDS)
            for data in stream:
                came += len(data)
                if came >= most_bytes or time.monotonic() - began >= most_seconds:
                    stream.cancel()
                    break
        return came, time.monotonic() - began

    def fetch_model_by_step(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        parent: Path,
        parts: Path,
        on_bytes: OnBytes | None = None,
        spares: Spares | None = None,
    ) -> bool:
        """Make a checkpoint's model in `folder` of its parent's and the published step.

        Args:
            manifest: Of the checkpoint, verified.
            folder: Where the model goes.
            parent: Folder of the checkpoint before.
            parts: Folder of unfinished downloads.
            on_bytes: Told of progress.
            spares: Whose space may be used again for the model.

        Returns:
            Whether the model is there and has the manifest's digest; if not, it is to be fetched.

        Raises:
            UnavailableError: The line broke; call again.
        """
        if manifest.step is None or manifest.made is None:
            return False
        (entry,) = [entry for entry in manifest.files if entry.name == MODEL_FILE]
        try:
            opened = open_vector_file(parent / MODEL_FILE)
            step = self.fetch(manifest.step, parts, on_bytes=on_bytes)
            with replacing(folder / MODEL_FILE, spares=spares, durable=False) as file:
                written = write_stepped(opened, step, manifest.made.downlink, file)
            step.unlink()
        except (UntrustedError, RejectedError):
            return False
        if (written.size_bytes, written.digest.hex()) == (entry.size_bytes, entry.digest):
            return True
        (folder / MODEL_FILE).unlink()
        return False

    def fetch_files(
        self,
        entries: Sequence[FileEntry],
        folder: Path,
        *,
        parts: Path,
        known: Sequence[Path] = (),
        on_bytes: OnBytes | None = None,
        spares: Spares | None = None,
    ) -> None:
        """Put the files of a checkpoint into `folder`.

        Args:
            entries: From a verified manifest or card.
            folder: Where they go.
            parts: Folder of unfinished downloads.
            known: Folders of other checkpoints; an equal file there is copied, not fetched.
            on_bytes: Told of progress.
            spares: Whose space may be used again for the model.
        """
        for entry in entries:
            target = folder / entry.name
            target.parent.mkdir(exist_ok=True)
            copy = _equal_file(entry, known)
            if copy is not None:
                shutil.copyfile(copy, target)
            else:
                mine = spares if entry.name == MODEL_FILE else None
                self.fetch(entry, parts, on_bytes=on_bytes, spares=mine).rename(target)

    def pull(
        self,
        target: Path,
        *,
        round_number: int | None,
        federation: str,
        on_bytes: OnBytes | None = None,
    ) -> VerifiedCheckpoint:
        """Fetch a whole checkpoint into the new folder `target` and verify it.

        Args:
            target: Must not exist.
            round_number: None for the newest.
            federation: Hex genesis digest that the lineage must have.
            on_bytes: Told of progress.

        Raises:
            UntrustedError: Something does not verify; `target` is not made.
        """
        manifest_envelope, _card = self.describe(round_number)
        claimed = Manifest.parsed(manifest_envelope.payload, what="manifest")
        envelopes = self.lineage(claimed.round)
        lineage = verify_lineage(envelopes, pinned=federation)
        if envelopes[-1].payload != manifest_envelope.payload:
            raise UntrustedError("the manifest is not the end of its lineage; not taken")
        parts = target.with_name(f".{target.name}.parts")
        with building(target) as folder:
            self.fetch_files(lineage.newest.files, folder, parts=parts, on_bytes=on_bytes)
            write_statements(folder, envelopes)
            self.fetch_card(folder, claimed.round, key=lineage.coordinator_key, parts=parts)
            self._fetch_proof(folder, lineage)
            verify_checkpoint(folder, federation=federation)
        shutil.rmtree(parts, ignore_errors=True)
        return verify_checkpoint(target, federation=federation)

    def _fetch_proof(self, folder: Path, lineage: Lineage) -> None:
        """Put the proof of the manifest's place in the ledger into `folder`, if there is one."""
        request = transfer_pb2.DescribeRequest(round=lineage.newest.round)
        with errors_from_status(self._address):
            proof = self._stub.Describe(request, timeout=CALL_SECONDS).ledger_proof
        if proof:
            verify_ledger_proof(
                proof,
                manifest_digest=lineage.newest_digest,
                round_number=lineage.newest.round,
                coordinator_key=lineage.coordinator_key,
                origin=origin_of(lineage.origin.federation, lineage.genesis_digest),
                witnesses={},
                quorum=0,
            )
            write_atomic(folder / PROOF_FILE, proof)

    def fetch_card(self, folder: Path, round_number: int, *, key: bytes, parts: Path) -> None:
        """Put card and its files into `folder`; once more if it is renewed meanwhile."""
        while True:
            _manifest, envelope = self.describe(round_number)
            card = Card.opened(envelope, public_key=key, what="card")
            try:
                self.fetch_files(card.files, folder, parts=parts)
            except (RejectedError, UntrustedError):
                if self.describe(round_number)[1] == envelope:
                    raise
            else:
                write_atomic(folder / CARD_FILE, to_json(envelope))
                return


def _equal_file(entry: FileEntry, folders: Sequence[Path]) -> Path | None:
    """Return a file in one of `folders` that has the entry's name, size and digest.

    What a folder's own manifest says decides which file is worth hashing: the large one is another
    in every checkpoint.
    """
    for folder in folders:
        path = folder / entry.name
        if entry in _listed(folder) and path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.digest:
                    return path
    return None


def _listed(folder: Path) -> tuple[FileEntry, ...]:
    """Return the files that the manifest in `folder` names; none if it cannot be read."""
    try:
        envelope = read_envelope(folder / MANIFEST_FILE, what="manifest")
        return Manifest.parsed(envelope.payload, what="manifest").files
    except UntrustedError:
        return ()
