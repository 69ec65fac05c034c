"""Contributions that have come in whole: their files, and their copies in a store of blobs."""

import json
import logging
import os
from pathlib import Path

from tapestry.checkpoints.folder import folder_name
from tapestry.errors import UnavailableError
from tapestry.params.codecs import Codec, codec_named
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import write_atomic
from tapestry.storage.blobs import Blobs

_log = logging.getLogger(__name__)
_BLOBS = "contributions"

Key = tuple[int, str]
"""Round and member."""


class WholeContributions:
    """The files of contributions whose last fragment has come."""

    def __init__(self, folder: Path, layout: ParameterLayout, *, blobs: Blobs | None) -> None:
        """Keep them below `folder`, and in `blobs`; nothing is read yet."""
        self._folder = folder
        self._layout = layout
        self._blobs = blobs
        self._announcements: dict[Key, tuple[Codec, tuple[bytes, ...]]] = {}
        """Codec and digests, as read from their files."""
        self._checksums: dict[Key, dict[int, bytes]] = {}
        """Of the fragments that this process has received."""

    def path(self, key: Key, suffix: str = "contribution") -> Path:
        """Return where a contribution lies, or what lies beside it."""
        return self._folder / folder_name(key[0]) / f"{key[1]}.{suffix}"

    def is_there(self, key: Key) -> bool:
        """Whether one has come in whole."""
        return self.path(key).is_file()

    def write_announcement(self, key: Key, codec: Codec, digests: tuple[bytes, ...]) -> None:
        """Write down, durably, what a contribution consists of."""
        table = {"codec": codec.name, "digests": [digest.hex() for digest in digests]}
        write_atomic(self.path(key, "json"), json.dumps(table))

    def received(self, key: Key, checksums: dict[int, bytes]) -> None:
        """Take note of one that has just come in, with the checksums of its fragments."""
        self._announcements.pop(key, None)
        self._checksums[key] = checksums

    def announced(self, key: Key) -> tuple[Codec, tuple[bytes, ...]]:
        """Return codec and digests of a contribution."""
        if key not in self._announcements:
            table = json.loads(self.path(key, "json").read_text(encoding="utf-8"))
            digests = tuple(map(bytes.fromhex, table["digests"]))
            self._announcements[key] = (codec_named(table["codec"]), digests)
        return self._announcements[key]

    def has_fragment(self, key: Key, index: int, digest: bytes) -> bool:
        """Whether a contribution is here, and a fragment of it has that digest."""
        return self.is_there(key) and digest == self.announced(key)[1][index]

    def read(self, key: Key, index: int) -> bytes:
        """Return a fragment, as it was received.

        Raises:
            UnavailableError: The file is gone or damaged.
        """
        path = self.path(key)
        try:
            codec, digests = self.announced(key)
            data = read_fragment(path, self._layout, codec, index)
        except OSError as error:
            raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
        checksum = self._checksums.get(key, {}).get(index)
        is_sound = (
            fragment_digest(data) == digests[index]
            if checksum is None
            else fragment_checksum(data) == checksum
        )
        if not is_sound:
            raise UnavailableError(f"{path}: fragment {index} is damaged on this disk")
        return data

    def secure(self, key: Key, *, root: str) -> None:
        """Put one into the store of blobs, if there is a store.

        Raises:
            UnavailableError: The store does not take it now; calling again goes on.
        """
        blob = _blob(key, root)
        if self._blobs is not None and self._blobs.size(f"{blob}.json") is None:
            self._blobs.put(self.path(key), f"{blob}.contribution")
            self._blobs.put(self.path(key, "json"), f"{blob}.json")

    def has(self, key: Key, root: str) -> bool:
        """Whether the contribution that is here is the one with that root."""
        try:
            return self.is_there(key) and fragments_root(self.announced(key)[1]).hex() == root
        except (OSError, ValueError, KeyError):
            return False

    def require_blobs(self, key: Key) -> Blobs:
        """Return the store of blobs, in which a contribution that is not here may be.

        Raises:
            UnavailableError: There is none.
        """
        if self._blobs is None:
            raise UnavailableError(
                f"{self.path(key)}: this contribution is recorded and not here; restore it from a "
                "backup, or copy it from the coordinator that took it"
            )
        return self._blobs

    def bring(self, key: Key, *, root: str) -> None:
        """Fetch one from the store of blobs.

        Raises:
            UnavailableError: There is no store, or it has not that.
            OSError: The disk is full.
        """
        blobs, blob = self.require_blobs(key), _blob(key, root)
        _log.info("round %d: fetching the contribution of %s", *key)
        self._announcements.pop(key, None)
        self._checksums.pop(key, None)
        self.path(key, "json").unlink(missing_ok=True)
        for suffix in ("contribution", "json"):
            if not blobs.get(f"{blob}.{suffix}", self.path(key, suffix)):
                raise UnavailableError(
                    f"{blobs.url}: {blob}.{suffix} is recorded and not there; restore it "
                    "from a backup"
                )

    def forget(self, *, before: int) -> None:
        """Forget what is remembered of rounds before round `before`."""
        for known in (self._announcements, self._checksums):
            for key in [key for key in list(known) if key[0] < before]:  # others add to them
                known.pop(key, None)

    def prune_blobs(self, *, before: int) -> None:
        """Remove those of rounds before round `before` from the store of blobs.

        Raises:
            UnavailableError: The store does not answer.
        """
        if self._blobs is not None:
            names = self._blobs.names(_BLOBS)
            self._blobs.delete([name for name in names if name.split("/")[1] < folder_name(before)])


def offset_of(layout: ParameterLayout, codec: Codec, index: int) -> int:
    """Return where a fragment begins in its file (bytes): all before it have the full length."""
    start, stop = layout.bounds(0)
    return index * codec.encoded_bytes(stop - start)


def read_fragment(path: Path, layout: ParameterLayout, codec: Codec, index: int) -> bytes:
    """Return what stands in a fragment's place.

    Raises:
        OSError: It cannot be read.
    """
    start, stop = layout.bounds(index)
    with path.open("rb", buffering=0) as file:
        size, offset = codec.encoded_bytes(stop - start), offset_of(layout, codec, index)
        return os.pread(file.fileno(), size, offset)


def _blob(key: Key, root: str) -> str:
    """Return the key of a contribution in the store of blobs, less its suffix."""
    return f"{_BLOBS}/{folder_name(key[0])}/{key[1]}-{root[:32]}"
