"""What a round was made from, for auditors: both ends of ArchiveService."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc

from tapestry.checkpoints.archive import Archive
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import ConfigError, RejectedError, UnavailableError, UntrustedError
from tapestry.storage.arriving import ArrivingFile
from tapestry.v1 import archive_pb2, archive_pb2_grpc
from tapestry.wire.fetching import Fetcher
from tapestry.wire.limits import CALL_SECONDS, MAX_FETCH_SECONDS, MEBIBYTE
from tapestry.wire.statuses import errors_from_status, status_from_errors

_NAME = re.compile(
    r"(contributions/round-\d{6,}/[a-z0-9-]{1,64}\.(contribution|json)|outer/round-\d{6,}\.f32)"
)
_MOST_FILES = 100_000


class ArchiveReader:
    """Reads archived rounds over a channel with an auditor's certificate."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        """Call over `channel`; `address` is for messages."""
        self._stub = archive_pb2_grpc.ArchiveServiceStub(channel)
        self._address = address

    def pull(
        self, round_number: int, folder: Path, *, on_bytes: Callable[[int], None] | None = None
    ) -> int:
        """Put what is kept of a round into `folder`; goes on where an earlier call broke off.

        Nothing of it is verified here: a replay does that.

        Args:
            round_number: Of a published checkpoint.
            folder: Of the archive, see `tapestry.checkpoints.archive`.
            on_bytes: Told of progress.

        Returns:
            How many files there are.

        Raises:
            RejectedError: It is not kept, or the caller is no auditor (UntrustedError).
            UnavailableError: The line broke; call again.
            OSError: The disk is full.
        """
        request = archive_pb2.ListRoundRequest(round=round_number)
        with errors_from_status(self._address):
            files = self._stub.ListRound(request, timeout=CALL_SECONDS).files
        if len(files) > _MOST_FILES:
            raise UntrustedError(f"round {round_number}: {len(files):,} files cannot be of a round")
        for entry in files:
            if not _NAME.fullmatch(entry.name):
                raise UntrustedError(f"{entry.name!r:.100}: not the name of an archived file")
            self._fetch(round_number, entry, folder / entry.name, on_bytes)
        return len(files)

    def _fetch(
        self,
        round_number: int,
        entry: archive_pb2.ArchivedFile,
        path: Path,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ArrivingFile(path, entry.size_bytes) as file:
            request = archive_pb2.FetchArchivedRequest(
                round=round_number, name=entry.name, offset_bytes=file.have
            )
            if file.have < entry.size_bytes:
                with errors_from_status(self._address):
                    for piece in self._stub.FetchArchived(request, timeout=MAX_FETCH_SECONDS):
                        if file.have + len(piece.data) > entry.size_bytes:
                            raise UntrustedError(f"{entry.name}: longer than was announced")
                        file.append(piece.data)
                        if on_bytes is not None:
                            on_bytes(len(piece.data))
            if file.have < entry.size_bytes:
                raise UntrustedError(f"{entry.name}: shorter than was announced")
            file.finish()


def pull_archived(
    fetcher: Fetcher,
    reader: ArchiveReader,
    out: Path,
    *,
    round_number: int | None,
    federation: str,
    on_bytes: Callable[[int], None] | None = None,
) -> VerifiedCheckpoint:
    """Fetch a checkpoint, the one before it, and what it was made from, into the archive `out`.

    Args:
        fetcher: Of published things.
        reader: Of archived ones.
        out: Folder of the archive; what an earlier call fetched is not fetched again.
        round_number: None for the newest.
        federation: Hex genesis digest that the lineage must have.
        on_bytes: Told of progress.

    Returns:
        The checkpoint, verified but not yet replayed.

    Raises:
        ConfigError: It is genesis, which was made from nothing.
        UntrustedError: Something does not verify, or the caller is no auditor.
    """
    archive = Archive(out)
    if round_number is None:
        envelope, _card = fetcher.describe()
        round_number = Manifest.parsed(envelope.payload, what="manifest").round
    if round_number < 1:
        raise ConfigError("genesis was made by no round: there is nothing to replay")
    reader.pull(round_number, out, on_bytes=on_bytes)
    found = []
    for number in (round_number - 1, round_number):
        folder = archive.checkpoint(number)
        if folder.is_dir():
            found.append(verify_checkpoint(folder, federation=federation))
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        found.append(
            fetcher.pull(folder, round_number=number, federation=federation, on_bytes=on_bytes)
        )
    return found[-1]


Readable = Callable[[grpc.ServicerContext, int], Mapping[str, Path]]
"""Files of a round by name, for a caller who may read them; raises for everybody else."""


def add_archive_service(readable: Readable, server: grpc.Server) -> None:
    """Serve archived rounds on `server`."""
    archive_pb2_grpc.add_ArchiveServiceServicer_to_server(_ArchiveService(readable), server)


class _ArchiveService(archive_pb2_grpc.ArchiveServiceServicer):
    """What auditors may read."""

    def __init__(self, readable: Readable) -> None:
        """Ask `readable` at every call."""
        self._readable = readable

    def ListRound(  # noqa: N802 - gRPC's name
        self, request: archive_pb2.ListRoundRequest, context: grpc.ServicerContext
    ) -> archive_pb2.ListRoundResponse:
        """Tell which files are kept of a round."""
        with status_from_errors(context):
            files = self._readable(context, request.round)
            return archive_pb2.ListRoundResponse(
                files=[
                    archive_pb2.ArchivedFile(name=name, size_bytes=path.stat().st_size)
                    for name, path in files.items()
                ]
            )

    def FetchArchived(  # noqa: N802
        self, request: archive_pb2.FetchArchivedRequest, context: grpc.ServicerContext
    ) -> Iterator[archive_pb2.FetchArchivedResponse]:
        """Send one of them."""
        with status_from_errors(context):
            path = self._readable(context, request.round).get(request.name)
            if path is None:
                raise RejectedError(f"round {request.round} has no file {request.name!r:.100}")
            try:
                with path.open("rb") as file:
                    file.seek(min(request.offset_bytes, path.stat().st_size))
                    while piece := file.read(MEBIBYTE):
                        yield archive_pb2.FetchArchivedResponse(data=piece)
            except OSError as error:
                raise UnavailableError(f"{request.name}: is not kept any more") from error
