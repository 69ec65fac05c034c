"""Contributions as they arrive: one pre-allocated file each, validated fragment by fragment.

```
contributions/round-000012/fr-bnf.upload        being received; holes where fragments are missing
contributions/round-000012/fr-bnf.json          its announced digests and codec
contributions/round-000012/fr-bnf.contribution  whole and durable
```
Which fragments are there is not written down anywhere: after a restart each is hashed again and
compared with the announced digest, so nothing half-written can pass for whole.
"""

import errno
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tapestry.checkpoints.folder import folder_name
from tapestry.errors import RejectedError, UnavailableError
from tapestry.params.codecs import Codec, codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import RollingSync, sync_folder, write_atomic


@dataclass(slots=True)
class Upload:
    """A contribution that is being received."""

    path: Path
    codec: Codec
    digests: tuple[bytes, ...]
    squared_norms: dict[int, float] = field(default_factory=dict)
    """By fragment that is there."""
    file: BinaryIO | None = None
    """Open for writing while fragments come in."""
    sync: RollingSync | None = None

    def missing(self) -> list[bool]:
        """Return for each fragment whether it is missing."""
        return [index not in self.squared_norms for index in range(len(self.digests))]

    def begin(self) -> None:
        """Open the allocated file for fragments."""
        self.file = self.path.open("r+b", buffering=0)
        self.sync = RollingSync(self.file)

    def end(self, *, durable: bool) -> None:
        """Close the file; `durable` waits until its bytes are on the disk."""
        if self.file is not None and self.sync is not None:
            self.sync.close()
            if durable:
                os.fsync(self.file.fileno())
            self.file.close()
        self.file = self.sync = None


class FragmentStore:
    """The files of contributions, received and whole."""

    def __init__(self, folder: Path, layout: ParameterLayout, *, max_element: float) -> None:
        """Keep them below `folder`; nothing is read yet."""
        self._folder = folder
        self._layout = layout
        self._max_element = max_element
        self._open: dict[tuple[int, str], Upload] = {}
        self._announcements: dict[tuple[int, str], tuple[Codec, tuple[bytes, ...]]] = {}
        """Codec and digests of whole contributions, as read from their files."""
        self._verified: set[tuple[int, str]] = set()
        """Contributions whose every byte this process has compared with its digest."""
        self._lock = threading.Lock()

    def open(
        self, round_number: int, member_id: str, *, codec: str, digests: tuple[bytes, ...]
    ) -> list[bool]:
        """Begin or resume an upload; return for each fragment whether it is missing.

        An upload with other digests replaces the one before: the member trained again.

        Raises:
            RejectedError: The codec is unknown.
            UnavailableError: There is no space for it now.
        """
        chosen = codec_named(codec)
        path = self._path(round_number, member_id, "upload")
        with self._lock:
            upload = self._open.get((round_number, member_id))
            if upload is None or upload.digests != digests or upload.codec.name != codec:
                if upload is not None:
                    upload.end(durable=False)
                upload = Upload(path, chosen, digests)
                if self._allocate(upload):
                    self._take_up(upload)
                upload.begin()
                self._open[round_number, member_id] = upload
            return upload.missing()

    def put(
        self, round_number: int, member_id: str, *, index: int, data: bytes | memoryview
    ) -> None:
        """Validate and store one fragment; one that is there already is left alone.

        Raises:
            RejectedError: No upload is open, or size, digest, finiteness or scale is wrong.
            UnavailableError: The disk is full.
        """
        with self._lock:
            upload = self._open.get((round_number, member_id))
        if upload is None or upload.file is None:
            raise RejectedError("no upload is open: announce the contribution's digests first")
        start, stop = self._layout.bounds(index)
        if index in upload.squared_norms:
            return
        if fragment_digest(data) != upload.digests[index]:
            raise RejectedError(f"fragment {index}: its bytes do not have the announced digest")
        squared = self._validated(upload, index, data, stop - start)
        try:
            os.pwrite(upload.file.fileno(), data, self._offset(upload.codec, index))
        except OSError as error:
            raise _no_space(error) from error
        except ValueError as error:  # the file was closed: another upload took its place
            raise RejectedError("the contribution was announced anew meanwhile") from error
        with self._lock:
            upload.squared_norms[index] = squared
            if upload.sync is not None:
                upload.sync.wrote(len(data))

    def finish(self, round_number: int, member_id: str) -> tuple[bytes, float]:
        """Make a complete upload durable; return its root and the norm of what it decodes to.

        Raises:
            RejectedError: Fragments are missing.
        """
        with self._lock:
            upload = self._open.get((round_number, member_id))
        if upload is None or any(upload.missing()):
            missing = "all" if upload is None else f"{sum(upload.missing()):,}"
            raise RejectedError(f"{missing} fragments are missing: send them before committing")
        upload.end(durable=True)
        upload.path.rename(self._path(round_number, member_id, "contribution"))
        sync_folder(upload.path.parent)
        with self._lock:
            self._open.pop((round_number, member_id), None)
            self._verified.add((round_number, member_id))
        squared = [upload.squared_norms[index] for index in range(len(upload.digests))]
        return fragments_root(upload.digests), norm(squared)

    def finished(self, round_number: int, member_id: str) -> tuple[bytes, float] | None:
        """Return root and norm of a whole contribution that lost its record in a crash."""
        path = self._path(round_number, member_id, "contribution")
        if not path.is_file():
            return None
        codec, digests = self._announced(round_number, member_id)
        upload = Upload(path, codec, digests)
        self._take_up(upload)
        if any(upload.missing()):
            return None
        with self._lock:
            self._verified.add((round_number, member_id))
        squared = [upload.squared_norms[index] for index in range(len(digests))]
        return fragments_root(digests), norm(squared)

    def read(self, round_number: int, member_id: str, index: int) -> bytes:
        """Return a fragment of a whole contribution, as it was received.

        Its hash is compared again unless this process received it: it then stood in the way of
        nothing but the disk, and an auditor who recomputes the round would find a difference.

        Raises:
            UnavailableError: The file is gone or damaged.
        """
        codec, digests = self._announced(round_number, member_id)
        path = self._path(round_number, member_id, "contribution")
        data = self._read_at(path, codec, index)
        is_known = (round_number, member_id) in self._verified
        if not is_known and fragment_digest(data) != digests[index]:
            raise UnavailableError(f"{path}: fragment {index} is damaged on this disk")
        return data

    def prune(self, *, before: int) -> None:
        """Remove the contributions to all rounds before round `before`."""
        for key in [key for key in self._announcements if key[0] < before]:
            del self._announcements[key]
        for folder in sorted(self._folder.glob("round-*")):
            if folder.name < folder_name(before):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()

    def _path(self, round_number: int, member_id: str, suffix: str) -> Path:
        return self._folder / folder_name(round_number) / f"{member_id}.{suffix}"

    def _announced(self, round_number: int, member_id: str) -> tuple[Codec, tuple[bytes, ...]]:
        key = (round_number, member_id)
        if key not in self._announcements:
            table = json.loads(self._path(round_number, member_id, "json").read_text())
            digests = tuple(map(bytes.fromhex, table["digests"]))
            self._announcements[key] = (codec_named(table["codec"]), digests)
        return self._announcements[key]

    def _allocate(self, upload: Upload) -> bool:
        """Reserve the whole file before the first byte is accepted; tell if it was there."""
        size = self._offset(upload.codec, self._layout.fragments - 1)
        start, stop = self._layout.bounds(self._layout.fragments - 1)
        size += upload.codec.encoded_bytes(stop - start)
        table = {"codec": upload.codec.name, "digests": [d.hex() for d in upload.digests]}
        try:
            upload.path.parent.mkdir(parents=True, exist_ok=True)
            was_there = upload.path.is_file()
            with upload.path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            write_atomic(upload.path.with_suffix(".json"), json.dumps(table))
        except OSError as error:
            raise _no_space(error) from error
        return was_there

    def _take_up(self, upload: Upload) -> None:
        """Find the fragments that are there already and right."""
        for index, digest in enumerate(upload.digests):
            data = self._read_at(upload.path, upload.codec, index)
            if fragment_digest(data) == digest:
                start, stop = self._layout.bounds(index)
                squared = self._validated(upload, index, data, stop - start)
                upload.squared_norms[index] = squared

    def _read_at(self, path: Path, codec: Codec, index: int) -> bytes:
        start, stop = self._layout.bounds(index)
        with path.open("rb", buffering=0) as file:
            return os.pread(
                file.fileno(), codec.encoded_bytes(stop - start), self._offset(codec, index)
            )

    def _offset(self, codec: Codec, index: int) -> int:
        """Return where a fragment begins: all before it have the full length."""
        start, _stop = self._layout.bounds(0)
        full = codec.encoded_bytes(self._layout.bounds(0)[1] - start)
        return index * full

    def _validated(
        self, upload: Upload, index: int, data: bytes | memoryview, elements: int
    ) -> float:
        """Decode a fragment; return its squared norm.

        Raises:
            RejectedError: Its size, finiteness or scale is wrong.
        """
        values = upload.codec.decode(data, elements)
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if largest > self._max_element:
            raise RejectedError(
                f"fragment {index} has an element of {largest:.3g}, the federation accepts up to "
                f"{self._max_element:g}: training has diverged; lower the learning rate"
            )
        return squared_norm(values)


def _no_space(error: OSError) -> UnavailableError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = "its disk is full" if full else (error.strerror or str(error))
    return UnavailableError(f"the coordinator cannot store this contribution now: {cause}")
