"""What a federation consists of, in a store of blobs too, so that it outlives one machine.

```
pool.txt                                    the open pool
published/round-000012-4f1c.../...          a checkpoint's files; its manifest comes last
outer/round-000012-77ab....f32              the outer optimizer's state after the round
contributions/round-000013/fr-bnf-9e0d...   see `uploads`
```
The digests in the names are those that the federation signed: a coordinator that was paused and
goes on later cannot replace anything. What is fetched is verified like all that comes from outside.
"""

import hashlib
import logging
import shutil
import time
from pathlib import Path

from tapestry.checkpoints.folder import (
    CARD_FILE,
    LINEAGE_FILE,
    MANIFEST_FILE,
    folder_name,
    read_envelope,
)
from tapestry.checkpoints.manifest import Card, Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import TapestryError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.storage.atomic import sync_path, sync_tree
from tapestry.storage.blobs import Blobs
from tapestry_coordinator.home import CoordinatorHome

_log = logging.getLogger(__name__)
_POOL = "pool.txt"
_DIGITS = 32
_CARD_TRIES = 50
_CARD_SECONDS = 0.2


def blobs_of(home: CoordinatorHome) -> Blobs | None:
    """Return the store that the coordinator's settings name, None if they name none."""
    storage = home.load_settings().storage
    return Blobs(storage.blobs, endpoint=storage.endpoint) if storage.blobs else None


class Mirror:
    """One coordinator's folder and the store."""

    def __init__(self, home: CoordinatorHome, blobs: Blobs) -> None:
        """Copy between them when asked; nothing is copied yet."""
        self._home = home
        self._blobs = blobs

    # Into the store

    def put_founding(self, genesis: Envelope) -> None:
        """Put the pool and the genesis checkpoint, if they are not there.

        Raises:
            UnavailableError: The store does not take it now.
        """
        if self._home.pool.is_file() and self._blobs.size(_POOL) is None:
            self._blobs.put(self._home.pool, _POOL)
        if not self.has_checkpoint(0, genesis):
            self.put_checkpoint(0, genesis)

    def has_checkpoint(self, number: int, envelope: Envelope) -> bool:
        """Whether the whole checkpoint of a round is in the store, and the state beside it.

        Raises:
            UnavailableError: The store does not say now.
        """
        return self._blobs.size(f"{_checkpoint(number, envelope)}/{MANIFEST_FILE}") is not None

    def put_checkpoint(self, number: int, envelope: Envelope) -> None:
        """Put a published checkpoint and the outer optimizer's state after it.

        Raises:
            UnavailableError: The store does not take it now, or the card is damaged on this disk.
        """
        folder, prefix = self._home.checkpoint(number), _checkpoint(number, envelope)
        state = _state(number, envelope)
        if state is not None and self._blobs.size(state) is None:
            self._blobs.put(self._home.outer_state(number), state)
        manifest = Manifest.parsed(envelope.payload, what="manifest")
        step = () if manifest.step is None else (manifest.step,)
        for name in (*(entry.name for entry in (*manifest.files, *step)), LINEAGE_FILE):
            self._blobs.put(folder / name, f"{prefix}/{name}")
        for name, data in _card_files(folder).items():
            self._blobs.put_bytes(data, f"{prefix}/{name}")
        self._blobs.put(folder / MANIFEST_FILE, f"{prefix}/{MANIFEST_FILE}")

    def prune(self, *, checkpoints_before: int, states_before: int) -> None:
        """Remove checkpoints, all but genesis, and states of rounds before these.

        Raises:
            UnavailableError: The store does not answer now.
        """
        first, second = folder_name(1), folder_name(checkpoints_before)
        past = [
            name
            for name in self._blobs.names("published")
            if first <= name.split("/")[1][: len(first)] < second
        ]
        third = folder_name(max(0, states_before))
        past += [name for name in self._blobs.names("outer") if name.split("/")[1] < third]
        self._blobs.delete(past)

    # Out of the store

    def bring_founding(self, genesis: Envelope) -> None:
        """Have the pool and the genesis checkpoint here.

        Raises:
            UnavailableError: They are not in the store, or it does not answer now.
        """
        if not self._home.checkpoint(0).is_dir() and not self.bring_checkpoint(0, genesis):
            raise UnavailableError(
                f"{self._blobs.url}: the genesis checkpoint of this federation is not there; is "
                "[storage] blobs the one that the leading coordinator has?"
            )
        if not self._home.pool.is_file():
            self._blobs.get(_POOL, self._home.pool)

    def bring_checkpoint(self, number: int, envelope: Envelope) -> bool:
        """Have a published checkpoint and its state here; tell whether the store has them whole.

        Raises:
            UnavailableError: The store does not answer now, or what it has is damaged.
            OSError: The disk is full.
        """
        prefix, state = _checkpoint(number, envelope), _state(number, envelope)
        if not self.has_checkpoint(number, envelope):
            return False
        target = self._home.checkpoint(number)
        if state is not None:
            self._bring_state(self._home.outer_state(number), state)
        if target.is_dir():
            return True
        _log.info("fetching checkpoint %d from %s", number, self._blobs.url)
        incoming = self._home.folder / ".incoming" / prefix.split("/")[1]
        for name in self._blobs.names(prefix):
            path = incoming / name.removeprefix(f"{prefix}/")
            if not path.is_file():
                self._blobs.get(name, path)
        self._require_sound(incoming, envelope)
        sync_tree(incoming)
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(target)
        sync_path(target.parent)
        return True

    def _bring_state(self, path: Path, key: str) -> None:
        """Fetch an optimizer's state; the aggregator compares it with the signed root."""
        if not path.is_file() and not self._blobs.get(key, path):
            raise UnavailableError(f"{self._blobs.url}: {key} is not there; restore a backup")

    def _require_sound(self, folder: Path, envelope: Envelope) -> None:
        try:
            if verify_checkpoint(folder).manifest_digest == payload_digest(envelope):
                return
            cause = "its manifest is another one"
        except TapestryError as error:
            cause = str(error)
        shutil.rmtree(folder)
        raise UnavailableError(f"{self._blobs.url}: a checkpoint is damaged there: {cause}")


def _checkpoint(number: int, envelope: Envelope) -> str:
    return f"published/{folder_name(number)}-{payload_digest(envelope)[:_DIGITS]}"


def _state(number: int, envelope: Envelope) -> str | None:
    """Return the key of the outer optimizer's state after a round, None if it has none."""
    made = Manifest.parsed(envelope.payload, what="manifest").made
    root = None if made is None else made.outer.state_root
    return None if root is None else f"outer/{folder_name(number)}-{root[:_DIGITS]}.f32"


def _card_files(folder: Path) -> dict[str, bytes]:
    """Read the signed card and what it lists, all of one version: it is renewed now and then."""
    for _try in range(_CARD_TRIES):
        signed = (folder / CARD_FILE).read_bytes()
        card = Card.parsed(read_envelope(folder / CARD_FILE, what="card").payload, what="card")
        read = {entry.name: (folder / entry.name).read_bytes() for entry in card.files}
        is_one = all(hashlib.sha256(read[e.name]).hexdigest() == e.digest for e in card.files)
        if is_one and (folder / CARD_FILE).read_bytes() == signed:
            return {**read, CARD_FILE: signed}
        time.sleep(_CARD_SECONDS)
    raise UnavailableError(f"{folder}: the card is damaged on this disk; restore a backup")
