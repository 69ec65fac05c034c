"""The manifests from genesis to the newest verified one, kept so that they need no coordinator."""

import os
from collections.abc import Sequence
from pathlib import Path

from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import Envelope, from_json, to_json
from tapestry.storage.atomic import write_atomic

_BLOCK_BYTES = 2**16


class LineageFile:
    """A file of envelopes, oldest first, that this node has verified."""

    def __init__(self, path: Path) -> None:
        """Go on where the file ends."""
        self._path = path
        self._newest: str | None = None

    @property
    def newest(self) -> str:
        """Manifest digest of the last; empty if there is none, or the file is damaged."""
        if self._newest is None:
            try:
                self._newest = payload_digest(self.read()[-1])
            except (UntrustedError, IndexError):
                self._newest = ""
        return self._newest

    def read(self) -> list[Envelope]:
        """Return all of them.

        Raises:
            UntrustedError: A line is not an envelope.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [from_json(line, what=f"{self._path}:{i}") for i, line in enumerate(lines, 1)]

    def first(self) -> Envelope:
        """Return that of genesis without reading the others.

        Raises:
            UntrustedError: There is none, or it is not an envelope.
        """
        try:
            with self._path.open("rb") as file:
                line = file.readline()
        except FileNotFoundError:
            line = b""
        return from_json(line.rstrip(b"\n"), what=f"{self._path}:1")

    def tail(self, most: int) -> list[Envelope]:
        """Return the last `most` of them without reading all of a long history.

        Raises:
            UntrustedError: A line is not an envelope.
        """
        try:
            with self._path.open("rb") as file:
                size = end = file.seek(0, os.SEEK_END)
                data = b""
                while end and data.count(b"\n") <= most:
                    end = max(0, end - max(_BLOCK_BYTES, len(data)))
                    data = os.pread(file.fileno(), size - end, end)
        except FileNotFoundError:
            return []
        lines = data.splitlines()[-most:]
        return [from_json(line, what=f"{self._path}: a line near its end") for line in lines]

    def replace(self, envelopes: Sequence[Envelope]) -> None:
        """Write the file anew."""
        write_atomic(self._path, b"".join(to_json(one) + b"\n" for one in envelopes))
        self._newest = payload_digest(envelopes[-1])

    def append(self, envelope: Envelope) -> None:
        """Add the next one, durably."""
        with self._path.open("ab") as file:
            file.write(to_json(envelope) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._newest = payload_digest(envelope)
