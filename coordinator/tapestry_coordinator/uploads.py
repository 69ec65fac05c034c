"""Contributions as they arrive: one pre-allocated file each, validated fragment by fragment.

```
contributions/round-000012/fr-bnf.upload        being received; holes where fragments are missing
contributions/round-000012/fr-bnf.contribution  whole and durable
contributions/round-000012/fr-bnf.json          its codec and digests
```
Which fragments are there is not written down anywhere: after a restart each is hashed again and
compared with the announced digest, so nothing half-written can pass for whole.

One member's calls take turns: a new announcement cannot change what another call is storing or
handing in.
"""

import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

from tapestry.aggregation.contributions import longest_fragment
from tapestry.checkpoints.folder import folder_name
from tapestry.errors import RejectedError, UnavailableError
from tapestry.params.codecs import Codec, Float32Array, codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import sync_path
from tapestry.storage.blobs import Blobs
from tapestry.storage.spares import Spares
from tapestry_coordinator import failpoints
from tapestry_coordinator.arrivals import NOT_OPEN, Arrival, Upload, WorkPlaces, rejoined
from tapestry_coordinator.whole_contributions import (
    Key,
    WholeContributions,
    offset_of,
    read_fragment,
)

_log = logging.getLogger(__name__)


class FragmentStore:
    """The files of contributions, received and whole."""

    def __init__(
        self, folder: Path, layout: ParameterLayout, *, blobs: Blobs | None = None
    ) -> None:
        """Keep them below `folder`, and in `blobs` once they are whole; nothing is read yet."""
        self._folder = folder
        self._layout = layout
        self._whole = WholeContributions(folder, layout, blobs=blobs)
        self._spares = Spares(folder, "contribution")
        self._work_places = WorkPlaces(longest_fragment(layout))
        self._lock = threading.Lock()
        self._turns: dict[str, threading.RLock] = {}
        self._open: dict[Key, Upload] = {}

    @contextmanager
    def turn(self, member_id: str) -> Iterator[None]:
        """Keep this member's other calls waiting; may be nested."""
        with self._lock:
            turn = self._turns.setdefault(member_id, threading.RLock())
        with turn:
            yield

    def close(self) -> None:
        """Close the files of uploads that are under way; they can be resumed."""
        with self._lock:
            uploads = list(self._open.values())
            self._open.clear()
        for upload in uploads:
            upload.end(durable=False)

    def open(
        self,
        round_number: int,
        member_id: str,
        *,
        codec: str,
        digests: tuple[bytes, ...],
        max_element: float,
    ) -> list[bool]:
        """Begin or resume an upload; return for each fragment whether it is missing.

        An upload with other digests replaces the one before: the member trained again.

        Args:
            round_number: That it belongs to.
            member_id: Whose it is.
            codec: As the round's plan says.
            digests: SHA-256 of the encoded fragments.
            max_element: Largest absolute element that the plan accepts.

        Raises:
            RejectedError: The codec is unknown.
            UnavailableError: There is no space for it now.
        """
        chosen, key = codec_named(codec), (round_number, member_id)
        with self.turn(member_id), _or_unavailable():
            upload = self._open.get(key)
            if upload is not None and (upload.digests, upload.codec.name) == (digests, codec):
                return upload.missing()
            if self._is_whole(key, chosen, digests):
                return [False] * len(digests)
            path = self._whole.path(key, "upload")
            before, upload = upload, Upload(path, chosen, digests, max_element)
            if before is not None:
                before.end(durable=False)
            if self._allocate(upload):
                if before is not None and before.codec.name == codec:
                    upload.keep(before)
                else:
                    self._take_up(upload)
            upload.begin()
            self._open[key] = upload
            return upload.missing()

    def put(
        self, round_number: int, member_id: str, *, index: int, data: bytes | memoryview
    ) -> None:
        """Validate and store one fragment; one that is there already is left alone.

        Raises:
            RejectedError: No upload is open, or size, digest, finiteness or scale is wrong.
            UnavailableError: The disk is full.
        """
        with self.turn(member_id), _or_unavailable():
            start, stop = self._layout.bounds(index)
            upload = self._open.get((round_number, member_id))
            if upload is None:
                self._require_held((round_number, member_id), index, fragment_digest(data))
                return
            if index in upload.squared_norms:
                return
            upload.require_announced(index, data)
            with self._work_places.one() as place:
                squared = _validated(upload, index, data, place.decoded[: stop - start])
            upload.write(data, offset_of(self._layout, upload.codec, index))
            upload.squared_norms[index] = squared
            upload.checksums[index] = fragment_checksum(data)
            failpoints.reach("fragment-stored")

    def take(
        self,
        round_number: int,
        member_id: str,
        *,
        index: int,
        pieces: Iterator[bytes | memoryview],
    ) -> int:
        """Validate and store one fragment as it comes in; return its size.

        No turn is held while a piece is waited for.

        Raises:
            RejectedError: As for `put`; what was written of it does not count.
            UnavailableError: The disk is full, or another call brings the same fragment by now.
        """
        first, second = next(pieces, b""), next(pieces, None)
        if second is None:  # all of it in one
            self.put(round_number, member_id, index=index, data=first)
            return len(first)
        pieces = rejoined((first, second), pieces)
        del first, second  # here and below, so that no piece is held while the next one comes
        with self.turn(member_id), _or_unavailable():
            arrival = self._arrival((round_number, member_id), index)
        try:
            for data in pieces:
                with self.turn(member_id), _or_unavailable():
                    arrival.write(data)
                del data
            with self.turn(member_id), _or_unavailable():
                self._complete(arrival)
        finally:
            arrival.end()
        return arrival.have

    def finish(self, round_number: int, member_id: str) -> tuple[bytes, float]:
        """Make a complete upload durable; return its root and the norm of what it decodes to.

        Raises:
            RejectedError: Fragments are missing.
            UnavailableError: The disk is full; the upload stays as it is.
        """
        key = (round_number, member_id)
        with self.turn(member_id), _or_unavailable():
            upload = self._open.get(key)
            if upload is None or any(upload.missing()):
                missing = "all" if upload is None else f"{sum(upload.missing()):,}"
                raise RejectedError(f"{missing} fragments are missing: send them before committing")
            failpoints.reach("contribution-received")
            upload.end(durable=True)
            self._whole.write_announcement(key, upload.codec, upload.digests)
            upload.path.rename(self._whole.path(key))
            sync_path(upload.path.parent)
            self._whole.received(key, upload.checksums)
            self._open.pop(key, None)
        return _root_and_norm(upload)

    def finished(self, round_number: int, member_id: str) -> tuple[bytes, float] | None:
        """Return root and norm of a whole contribution that lost its record in a crash.

        None if there is none, or if another one of the member is being received.
        """
        key = (round_number, member_id)
        if key in self._open or not self._whole.is_there(key):
            return None
        with self.turn(member_id), _or_unavailable():
            announced = self._whole.announced(key)
            upload = Upload(self._whole.path(key), *announced, max_element=inf)  # was looked at
            self._take_up(upload)
        return None if any(upload.missing()) else _root_and_norm(upload)

    def read(self, round_number: int, member_id: str, index: int) -> bytes:
        """Return a fragment of a whole contribution, as it was received.

        Raises:
            UnavailableError: The file is gone or damaged.
        """
        return self._whole.read((round_number, member_id), index)

    def secure(self, round_number: int, member_id: str, *, root: str) -> None:
        """Put a whole contribution into the store of blobs, if there is one.

        Raises:
            UnavailableError: The store does not take it now; calling again goes on.
        """
        self._whole.secure((round_number, member_id), root=root)

    def bring(self, round_number: int, member_id: str, *, root: str) -> None:
        """Make sure that a whole contribution is here and the one with that root.

        Raises:
            UnavailableError: It is not, and there is no store of blobs, or not in it.
            OSError: The disk is full.
        """
        key = (round_number, member_id)
        if self._whole.has(key, root):  # without a turn: nobody's call may keep a round waiting
            return
        self._whole.require_blobs(key)
        with self.turn(member_id):
            self._whole.bring(key, root=root)

    def prune(self, *, before: int) -> None:
        """Remove the contributions to all rounds before round `before`.

        Raises:
            UnavailableError: The store of blobs does not answer; those here are gone.
        """
        with self._lock:
            given_up = [self._open.pop(key) for key in sorted(self._open) if key[0] < before]
            self._whole.forget(before=before)
        for upload in given_up:
            upload.end(durable=False)
        past = [
            folder
            for folder in sorted(self._folder.glob("round-*"))
            if folder.name < folder_name(before)
        ]
        if past:
            self._spares.retire(past[-1].glob("*.contribution"))
        for folder in past:
            shutil.rmtree(folder)
        self._whole.prune_blobs(before=before)

    def _is_whole(self, key: Key, codec: Codec, digests: tuple[bytes, ...]) -> bool:
        """Whether just this contribution was received and lost its record in a crash."""
        if not self._whole.is_there(key):
            return False
        known_codec, known_digests = self._whole.announced(key)
        is_same = (known_codec.name, known_digests) == (codec.name, digests)
        return is_same and self.finished(*key) is not None

    def _arrival(self, key: Key, index: int) -> Arrival:
        """Begin to take a fragment's pieces; one that is there already only passes."""
        start, stop = self._layout.bounds(index)
        upload = self._open.get(key)
        if upload is not None:
            codec = upload.codec
        elif self._whole.is_there(key):
            codec = self._whole.announced(key)[0]
        else:
            raise RejectedError(NOT_OPEN)
        return Arrival(
            key,
            upload,
            index,
            size_bytes=codec.encoded_bytes(stop - start),
            offset=offset_of(self._layout, codec, index),
        )

    def _complete(self, arrival: Arrival) -> None:
        """Look at a fragment all of whose pieces are in its place, and count it as there."""
        upload, index = arrival.upload, arrival.index
        if upload is None:
            self._require_held(arrival.key, index, arrival.digest())
        elif arrival.must_be_written():
            start, stop = self._layout.bounds(index)
            with self._work_places.one() as place:
                data = arrival.read_again(place)
                squared = _validated(upload, index, data, place.decoded[: stop - start])
                upload.checksums[index] = fragment_checksum(data)
            upload.squared_norms[index] = squared
            failpoints.reach("fragment-stored")

    def _require_held(self, key: Key, index: int, digest: bytes) -> None:
        """Refuse a fragment for which no upload is open, unless it is there already."""
        if not self._whole.has_fragment(key, index, digest):
            raise RejectedError(NOT_OPEN)

    def _allocate(self, upload: Upload) -> bool:
        """Reserve the whole file before the first byte is accepted; tell if it was there."""
        size = offset_of(self._layout, upload.codec, self._layout.fragments - 1)
        start, stop = self._layout.bounds(self._layout.fragments - 1)
        size += upload.codec.encoded_bytes(stop - start)
        upload.path.parent.mkdir(parents=True, exist_ok=True)
        was_there = upload.path.is_file()
        if not was_there:
            self._spares.take(upload.path)
        with upload.path.open("ab") as file:
            os.truncate(file.fileno(), min(size, file.tell()))
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                self._spares.clear()
                os.posix_fallocate(file.fileno(), 0, size)
        return was_there

    def _take_up(self, upload: Upload) -> None:
        """Find the fragments that are there already and right."""
        for index, digest in enumerate(upload.digests):
            data = read_fragment(upload.path, self._layout, upload.codec, index)
            if fragment_digest(data) == digest:
                start, stop = self._layout.bounds(index)
                with self._work_places.one() as place:
                    squared = _validated(upload, index, data, place.decoded[: stop - start])
                upload.squared_norms[index] = squared
                upload.checksums[index] = fragment_checksum(data)


def _validated(
    upload: Upload, index: int, data: bytes | memoryview, decoded: Float32Array
) -> float:
    """Decode a fragment into `decoded`; return its squared norm.

    Raises:
        RejectedError: Its size, finiteness or scale is wrong.
    """
    upload.codec.decode_into(data, decoded)
    squared = squared_norm(decoded)
    if squared > upload.max_element**2:  # else no element can be larger
        largest = max(float(decoded.max()), -float(decoded.min()))
        if largest > upload.max_element:
            raise RejectedError(
                f"fragment {index} has an element of {largest:.3g}, the federation accepts "
                f"up to {upload.max_element:g}: training has diverged; lower the learning "
                "rate"
            )
    return squared


def _root_and_norm(upload: Upload) -> tuple[bytes, float]:
    squared = [upload.squared_norms[index] for index in range(len(upload.digests))]
    return fragments_root(upload.digests), norm(squared)


@contextmanager
def _or_unavailable() -> Iterator[None]:
    """Turn a disk that does not take it into an answer to try again later."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "its disk is full" if full else (error.strerror or str(error))
        raise UnavailableError(
            f"the coordinator cannot store this contribution now: {cause}"
        ) from error
