"""The files of checkpoints that members can fetch, by their digests."""

import threading
from pathlib import Path

from tapestry.checkpoints.folder import CARD_FILE, MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Card, Manifest
from tapestry.errors import RejectedError
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry

MOST_INDEXED = 64
"""Checkpoints whose files are served without having been asked about since the start."""


class PublishedFiles:
    """What the manifests and cards of checkpoints, and of a candidate, name; from any thread."""

    def __init__(self, home: CoordinatorHome, registry: Registry) -> None:
        """Look through genesis, the newest checkpoints, and a candidate if there is one."""
        self._home = home
        self._registry = registry
        self._names: dict[int, dict[str, str]] = {}
        """By digest, of the rounds that were looked at last."""
        self._lock = threading.Lock()
        candidate = (registry.newest_round() or 0) + 1
        for number in (0, *range(max(1, candidate + 1 - MOST_INDEXED), candidate + 1)):
            self.index(number)

    def index(self, number: int) -> None:
        """Make the files of a checkpoint available, or those of a round's candidate."""
        folder = self._home.checkpoint(number)
        if not folder.is_dir():
            folder = self._home.candidate(number)
        if not folder.is_dir():
            return
        card = Card.parsed(read_envelope(folder / CARD_FILE, what="card").payload, what="card")
        envelope = self._registry.manifest(number)
        if envelope is None:
            envelope = read_envelope(folder / MANIFEST_FILE, what="manifest")
        manifest = Manifest.parsed(envelope.payload, what="manifest")
        step = () if manifest.step is None else (manifest.step,)
        names = {entry.digest: entry.name for entry in (*card.files, *manifest.files, *step)}
        with self._lock:
            self._names.pop(number, None)
            self._names[number] = names
            needed = {0, *sorted(self._names)[-2:]}  # the newest, and a candidate
            for oldest in list(self._names)[:-MOST_INDEXED]:
                if oldest not in needed:
                    del self._names[oldest]

    def have(self, number: int) -> None:
        """Make the files of an older checkpoint available too."""
        if number not in self._names:
            self.index(number)

    def path(self, digest: str) -> Path:
        """Return where a file lies.

        Raises:
            RejectedError: Nothing published has that digest.
        """
        with self._lock:
            found = [(n, names[digest]) for n, names in self._names.items() if digest in names]
        for number, name in found:
            # As a released candidate moves: who looks the other way round may find it in neither.
            for folder in (self._home.candidate(number), self._home.checkpoint(number)):
                if (folder / name).is_file():
                    return folder / name
        raise RejectedError(f"no published file has the digest {digest[:16]}")
