"""A finished contribution on the node's disk, from the last inner step to the receipt.

```
spool/round-000012/fragments.bin       the encoded fragments, one after the other
spool/round-000012/digests.json        SHA-256 of each
spool/round-000012/contribution.json   the signed contribution; written last
spool/round-000012/residual.f32        with error feedback: tapestry_node.residual
spool/round-000012/durable             present once all of it is known to be on the disk
```
A process that dies loses nothing of it. A machine that goes down can only lose what was spooled in
the last seconds: sending begins at once, and what has no receipt soon is made durable meanwhile.
Without the last file, whoever takes up a spool compares every fragment with its digest first.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.errors import RejectedError, UntrustedError
from tapestry.identity.envelopes import Envelope, from_json, to_json
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import replacing, sync_tree, write_atomic
from tapestry.storage.spares import Spares
from tapestry_node.home import NodeHome
from tapestry_node.residual import SPOOLED_RESIDUAL, refuse_residual

_log = logging.getLogger(__name__)

FRAGMENTS_FILE = "fragments.bin"
_DIGESTS_FILE = "digests.json"
CONTRIBUTION_FILE = "contribution.json"
_DURABLE_FILE = "durable"
_DURABLE_AFTER_SECONDS = 2.0


class FragmentWriter:
    """Takes encoded fragments in index order, and keeps their digests and checksums."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to `file`."""
        self._file = file
        self._size = 0
        self.digests: list[bytes] = []
        self.checksums: list[bytes] = []

    @property
    def path(self) -> Path:
        """Where another process may write the fragments, for `take`."""
        return Path(self._file.name)

    def write(self, data: bytes) -> None:
        """Append the next fragment."""
        self._note(data)
        self._file.write(data)

    def take(self, size: int) -> bytes:
        """Return the next fragment, which another process has appended.

        Raises:
            RejectedError: There are fewer than `size` bytes.
        """
        data = os.pread(self._file.fileno(), size, self._size)
        if len(data) != size:
            raise RejectedError(
                f"fragment {len(self.digests)} has {len(data):,} bytes, the plan's codec needs "
                f"{size:,}"
            )
        self._note(data)
        self._file.seek(self._size)
        return data

    def _note(self, data: bytes) -> None:
        self._size += len(data)
        self.digests.append(fragment_digest(data))
        self.checksums.append(fragment_checksum(data))


@contextmanager
def spooling(folder: Path, spares: Spares) -> Iterator[FragmentWriter]:
    """Begin the spool `folder` anew, and take its fragments.

    Raises:
        OSError: The disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with replacing(folder / FRAGMENTS_FILE, mode=0o600, spares=spares, durable=False) as file:
        yield FragmentWriter(file)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """A finished contribution on the disk."""

    folder: Path
    contribution: Contribution
    envelope: Envelope
    digests: tuple[bytes, ...]
    checksums: tuple[bytes, ...] = field(default=(), compare=False)
    """Of the same fragments, if this process has written them."""
    layout: ParameterLayout

    @classmethod
    def completed(
        cls,
        folder: Path,
        contribution: Contribution,
        envelope: Envelope,
        *,
        fragments: FragmentWriter,
        layout: ParameterLayout,
    ) -> "Spooled":
        """Write what completes a spool whose fragments are there."""
        digests = [digest.hex() for digest in fragments.digests]
        write_atomic(folder / _DIGESTS_FILE, json.dumps(digests), durable=False)
        write_atomic(folder / CONTRIBUTION_FILE, to_json(envelope), durable=False)
        return cls(
            folder=folder,
            contribution=contribution,
            envelope=envelope,
            digests=tuple(fragments.digests),
            checksums=tuple(fragments.checksums),
            layout=layout,
        )

    def read_fragment(self, index: int) -> bytes:
        """Return an encoded fragment, which has the digest that was signed.

        Raises:
            RejectedError: It is damaged on this disk; nothing else may leave in its place.
        """
        data = self._read(index)
        is_sound = (
            fragment_checksum(data) == self.checksums[index]
            if self.checksums
            else fragment_digest(data) == self.digests[index]
        )
        if not is_sound:
            raise RejectedError(f"{self.folder}: fragment {index} is damaged on this disk")
        return data

    def _read(self, index: int) -> bytes:
        codec = codec_named(self.contribution.codec)
        start, stop = self.layout.bounds(index)
        first, last = self.layout.bounds(0)
        with (self.folder / FRAGMENTS_FILE).open("rb", buffering=0) as file:
            offset = index * codec.encoded_bytes(last - first)
            return os.pread(file.fileno(), codec.encoded_bytes(stop - start), offset)

    @property
    def size_bytes(self) -> int:
        """Length of all encoded fragments."""
        return (self.folder / FRAGMENTS_FILE).stat().st_size

    @contextmanager
    def becoming_durable(self) -> Iterator[None]:
        """Make the spool durable beside the block, unless that ends within two seconds."""
        marking, ended = threading.Lock(), threading.Event()

        def make_durable() -> None:
            if (self.folder / _DURABLE_FILE).exists():
                return
            try:
                sync_tree(self.folder)
                with marking:
                    if not ended.is_set():  # else the folder may be another spool's by now
                        (self.folder / _DURABLE_FILE).touch()
            except FileNotFoundError:
                return  # delivered meanwhile
            except OSError as error:
                _log.warning("%s: cannot be made durable: %s", self.folder, error.strerror)

        timer = threading.Timer(_DURABLE_AFTER_SECONDS, make_durable)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with marking:
                ended.set()

    def is_whole(self) -> bool:
        """Whether every fragment is what was signed, as it is unless the machine went down."""
        if (self.folder / _DURABLE_FILE).exists():
            return True
        return all(
            fragment_digest(self._read(index)) == digest
            for index, digest in enumerate(self.digests)
        )

    def remove(self, spares: Spares) -> None:
        """Give its space back for the next; what was removed before is no failure."""
        with contextlib.suppress(FileNotFoundError):
            spares.retire([self.folder / FRAGMENTS_FILE])
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)


def find_spooled(
    home: NodeHome, plan: RoundPlan, layout: ParameterLayout, *, key: bytes
) -> Spooled | None:
    """Return the finished contribution to a plan that an earlier process left, if any.

    Args:
        home: Of the node.
        plan: That it answers.
        layout: Of the vector.
        key: The node's raw public key: the trainer's process can write here, and nothing leaves
            that the guard has not signed.
    """
    spooled = _read_spooled(home.spool(plan.round), layout, key)
    if spooled is None:
        return None
    made = spooled.contribution
    asked = (plan.base, plan.codec, plan.inner.steps, plan.inner.tokens)
    is_it = (made.base, made.codec, made.steps, made.tokens) == asked
    return spooled if is_it and spooled.is_whole() else None


def find_unsettled(
    home: NodeHome, layout: ParameterLayout, *, key: bytes, late: range = range(0)
) -> list[Spooled]:
    """Return finished contributions without a receipt that somebody waits for, oldest first.

    Those to the rounds in `late`, which may still be used, and those whose residual waits for what
    became of them.
    """
    usable = {home.spool(number) for number in late}
    folders = (
        folder
        for folder in home.spooled()
        if folder in usable or (folder / SPOOLED_RESIDUAL).is_file()
    )
    found = (_read_spooled(folder, layout, key) for folder in folders)
    return [spooled for spooled in found if spooled is not None and spooled.is_whole()]


def _read_spooled(folder: Path, layout: ParameterLayout, key: bytes) -> Spooled | None:
    """Return the contribution in a spool, or None if it is unfinished or was lost with the power.

    Raises:
        RejectedError: It is of another model.
    """
    path = folder / CONTRIBUTION_FILE
    if not path.is_file():
        return None
    try:
        envelope = from_json(path.read_bytes(), what=f"spooled contribution in {folder.name}")
        contribution = Contribution.opened(envelope, public_key=key, what="spooled contribution")
        digests = tuple(map(bytes.fromhex, json.loads((folder / _DIGESTS_FILE).read_bytes())))
    except (OSError, ValueError, TypeError, UntrustedError) as error:
        _log.warning("%s: cannot be read and counts as unfinished: %s", folder, error)
        return None
    if len(digests) != layout.fragments:
        raise RejectedError(f"{folder}: the spool is of another model; remove it")
    if fragments_root(digests).hex() != contribution.root:
        _log.warning("%s: its digests are not those that were signed; not sent", folder)
        return None
    return Spooled(
        folder=folder,
        contribution=contribution,
        envelope=envelope,
        digests=digests,
        layout=layout,
    )


def keep_refused(spooled: Spooled, home: NodeHome, layout: ParameterLayout) -> None:
    """Remove a contribution that was not taken; add what it would have brought to the next one."""
    refuse_residual(
        spooled.folder,
        home.residual,
        codec=codec_named(spooled.contribution.codec),
        layout=layout,
        read_fragment=spooled.read_fragment,
    )
    spooled.remove(home.spare_spools)
