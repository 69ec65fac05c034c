"""A checkpoint is published at once, and durable a little later: it can be computed again.

What cannot be computed again waits for the disk before anybody hears of it: contributions before
their receipts, and every statement in the registry. A checkpoint and the outer optimizer's state
follow from those to the bit. Their gigabytes go to the disk while the next round runs; until they
are there, `unsettled.json` names the round, and what it was computed from is kept.

A process that dies loses nothing. After the machine itself went down, the named checkpoint is
verified, and computed again if it is damaged.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from tapestry.checkpoints.deciding import kept_vectors
from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.outer_state import OuterStateFile
from tapestry.checkpoints.policy import ArchivePolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, TapestryError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.storage.atomic import boot_id, remove_unfinished, sync_path, sync_tree, write_atomic
from tapestry_coordinator import failpoints
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.mirroring import Mirror
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import folded

_log = logging.getLogger(__name__)

UNSETTLED_FILE = "unsettled.json"


class Settling:
    """Makes published checkpoints durable, and repairs the newest after a power cut."""

    def __init__(
        self,
        home: CoordinatorHome,
        registry: Registry,
        publisher: Publisher,
        mirror: Mirror | None = None,
    ) -> None:
        """Of the coordinator in `home`, whose checkpoints go to `mirror` too if there is one."""
        self._mirror = mirror
        self._home = home
        self._registry = registry
        self._publisher = publisher

    @property
    def _note(self) -> Path:
        return self._home.folder / UNSETTLED_FILE

    def begin(self, number: int) -> None:
        """Note durably, before it is published, that a checkpoint is not on the disk yet."""
        write_atomic(self._note, json.dumps({"round": number, "boot": boot_id()}))

    def finish(self, number: int) -> None:
        """Wait until a published checkpoint and its outer state are on the disk.

        Raises:
            OSError: The disk failed.
        """
        sync_tree(self._home.checkpoint(number))
        sync_path(self._home.published)
        state = self._home.outer_state(number)
        sync_path(state)
        sync_path(state.parent)
        failpoints.reach("checkpoint-durable")
        self._note.unlink(missing_ok=True)

    def share(self, number: int) -> None:
        """Put a checkpoint that is on the disk into the store of blobs too, if there is one.

        Raises:
            UnavailableError: The store does not take it now.
        """
        envelope = self._registry.manifest(number)
        if self._mirror is None or envelope is None:
            return
        if number == 0:
            self._mirror.put_founding(envelope)
        elif not self._mirror.has_checkpoint(number, envelope):
            self._mirror.put_checkpoint(number, envelope)

    def take_up(self) -> None:
        """Have the newest checkpoint here, though another coordinator may have published it.

        To be called before `recover`. What the store does not have is computed again.

        Raises:
            ConfigError: It is not here, and there is no store to fetch it from.
            UnavailableError: The store does not answer now, or what it has is damaged.
        """
        lineage = self._registry.lineage()
        self._drop_strays(lineage)
        newest = len(lineage) - 1
        self._have(newest, lineage)
        oldest = self._archive().first_state(newest)
        for state in (self._home.folder / "outer").glob("round-*.f32"):
            if state.name < self._home.outer_state(oldest).name:
                state.unlink()

    def _archive(self) -> ArchivePolicy:
        """Return what the policy in force says about what is kept."""
        newest = self._registry.newest_policy()
        return ArchivePolicy() if newest is None else newest.policy.archive

    def _drop_strays(self, lineage: Sequence[Envelope]) -> None:
        """Remove checkpoints that a coordinator made which led no more, and nobody recorded."""
        for folder in self._home.published.glob("round-*"):
            number = int(folder.name.removeprefix("round-"))
            try:
                here = read_envelope(folder / MANIFEST_FILE, what="manifest").payload
            except TapestryError:
                here = b""
            if number >= len(lineage) or lineage[number].payload != here:
                _log.warning("%s was not published: removed", folder)
                self._drop(number)

    def _have(self, number: int, lineage: Sequence[Envelope]) -> None:
        """Fetch or compute a checkpoint and the outer optimizer's state after it."""
        manifest = Manifest.parsed(lineage[number].payload, what="manifest")
        has_state = kept_vectors(manifest) == 0 or self._home.outer_state(number).is_file()
        if self._home.checkpoint(number).is_dir() and has_state:
            return
        mirror = self._mirror
        if mirror is not None and mirror.bring_checkpoint(number, lineage[number]):
            return
        if mirror is None or number == 0:
            raise ConfigError(
                f"{self._home.checkpoint(number)} is not here, and [storage] blobs names no store "
                "that has it: set it, for every coordinator alike, or copy the folder"
            )
        self._have(number - 1, lineage)
        _log.warning("checkpoint %d was not in the store yet: made again", number)
        self._drop(number)
        self._make_again(number, lineage[number])
        self.finish(number)

    def recover(self) -> None:
        """Bring the newest checkpoint in order; to be called before anything is served.

        Raises:
            UnavailableError: It is damaged, and computing it again gives another one.
        """
        for folder in (self._home.published, self._home.outer_state(0).parent):
            remove_unfinished(folder)
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            number, is_same_boot = int(noted["round"]), noted["boot"] == boot_id()
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError):
            number, is_same_boot = (self._registry.newest_round() or 0) + 1, False
        envelope = self._registry.manifest(number)
        if envelope is None:
            if not is_same_boot:  # nobody has heard of it: the aggregator makes it again
                self._drop(number)
            return
        if not is_same_boot and not self._is_sound(number, envelope):
            _log.warning("checkpoint %d was lost when the machine went down: made again", number)
            self._drop(number)
            self._make_again(number, envelope)
        self.finish(number)

    def _drop(self, number: int) -> None:
        for folder in (self._home.checkpoint(number), self._home.candidate(number)):
            shutil.rmtree(folder, ignore_errors=True)
        self._home.outer_state(number).unlink(missing_ok=True)

    def _make_again(self, number: int, envelope: Envelope) -> None:
        events = self._registry.round_events(number)
        state = folded(number, [(at, e) for at, e in events if not isinstance(e, Published)])
        again = self._publisher.publish(ClosedRound.recorded(self._registry, state))
        if again.payload != envelope.payload:
            self._drop(number)
            raise UnavailableError(
                f"checkpoint {number} was damaged when the machine went down, and computing it "
                "again gives another one: the software changed since. Undo that, or restore"
                f" {self._home.checkpoint(number)} from a member's copy"
            )

    def _is_sound(self, number: int, envelope: Envelope) -> bool:
        folder = self._home.checkpoint(number)
        try:
            verified = verify_checkpoint(folder)
            if verified.manifest_digest != payload_digest(envelope):
                return False
            return self._is_state_sound(number, verified.manifest)
        except TapestryError:
            return False

    def _is_state_sound(self, number: int, manifest: Manifest) -> bool:
        vectors = kept_vectors(manifest)
        if manifest.made is None or vectors == 0:
            return True
        layout = open_vector_file(self._home.checkpoint(number) / MODEL_FILE).layout
        state = OuterStateFile(self._home.outer_state(number), layout, vectors)
        return state.root().hex() == manifest.made.outer.state_root
