"""The consensus checkpoints at a node: what it has verified, and the folders it has fetched."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tapestry.checkpoints.folder import MANIFEST_FILE, file_entry
from tapestry.checkpoints.manifest import FileEntry, Lineage, Manifest, verify_lineage
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import require_beside
from tapestry.errors import RejectedError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.identity.membership import Membership
from tapestry.storage.atomic import sync_path
from tapestry.wire.fetching import Fetcher
from tapestry_node.home import NodeHome, NodeState
from tapestry_node.lineage import LineageFile

_log = logging.getLogger(__name__)


class Standing:
    """Where the node stands; every change is durable when it has been made."""

    def __init__(self, home: NodeHome) -> None:
        """Take up what the last process left."""
        self._home = home
        self.state: NodeState = home.load_state()

    def change(self, **fields: Any) -> None:  # noqa: ANN401 - fields of NodeState
        """Change some fields."""
        self.state = replace(self.state, **fields)
        self._home.save_state(self.state)

    def has_answered(self, plan: RoundPlan) -> bool:
        """Whether a plan's round has all it takes from this node, perhaps a late contribution."""
        answered = 0 if plan.is_asynchronous else self.state.answered
        return plan.round <= max(answered, self.state.contributed)


class Consensus:
    """Verifies what the coordinator says is the consensus, and fetches it."""

    def __init__(
        self,
        home: NodeHome,
        membership: Membership,
        standing: Standing,
        *,
        fetcher: Callable[[], Fetcher],
        tell: Callable[[str], None],
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        """Begin where the node stands.

        Args:
            home: Of the node.
            membership: What it has pinned.
            standing: Changed here when a checkpoint was verified.
            fetcher: Returns the connection there is.
            tell: Told in a few words what takes long.
            on_bytes: Told how many bytes have come of that, and how many there are at most.
        """
        self._home = home
        self._membership = membership
        self._key = bytes.fromhex(membership.coordinator_key)
        self._standing = standing
        self._lineage = LineageFile(home.lineage)
        self._fetcher = fetcher
        self._tell = tell
        self._on_bytes = on_bytes
        self._sound = -1
        """The checkpoint that this process has fetched or verified."""

    def verified(self, envelope: Envelope, *, what: str = "manifest") -> Manifest:
        """Return a manifest with the pinned key's signature."""
        return Manifest.opened(envelope, public_key=self._key, what=what)

    def staleness(self, plan: RoundPlan, newest: Envelope) -> int:
        """Return by how many rounds an answer to `plan` is late once `newest` is out."""
        if payload_digest(newest) == plan.base:
            return 0
        return self.verified(newest).round + 1 - plan.round

    def take(self, envelope: Envelope) -> Manifest:
        """Verify that the newest manifest follows from the one this node knew.

        Raises:
            UntrustedError: Another federation, another key, or another history.
        """
        manifest = self.verified(envelope)
        digest = payload_digest(envelope)
        state = self._standing.state
        if digest == state.manifest:
            if self._lineage.newest != digest:
                self._from_genesis(manifest, digest)
            return manifest
        if manifest.round <= state.round:
            raise UntrustedError(
                f"the coordinator shows checkpoint {manifest.round} as its newest, this node has "
                f"verified {state.round}: its history was changed; ask its operator"
            )
        objective = state.objective
        is_next = manifest.parent == state.manifest and manifest.round == state.round + 1
        if is_next and self._lineage.newest == state.manifest:
            self._lineage.append(envelope)
        else:
            objective = self._from_genesis(manifest, digest).origin.objective
        self._standing.change(round=manifest.round, manifest=digest, objective=objective)
        return manifest

    def _from_genesis(self, manifest: Manifest, digest: str) -> Lineage:
        envelopes = self._fetcher().lineage(manifest.round)
        lineage = verify_lineage(envelopes, pinned=self._membership.genesis)
        if lineage.newest_digest != digest:
            raise UntrustedError("the lineage does not lead to the newest manifest; not taken")
        state = self._standing.state
        if state.manifest and state.manifest not in map(payload_digest, envelopes):
            raise UntrustedError(
                f"the coordinator's history does not contain checkpoint {state.round} that "
                "this node has verified: its history was changed; ask its operator"
            )
        if lineage.coordinator_key != self._key:
            raise UntrustedError("the lineage is signed by another key than the pinned one")
        self._lineage.replace(envelopes)
        return lineage

    def checkpoint(self, manifest: Manifest, envelope: Envelope) -> Path:
        """Return the folder of a checkpoint, fetched if it is not here."""
        target, candidate = self._home.checkpoint(manifest.round), self._home.candidate
        if candidate.is_dir() and not target.is_dir():
            if (candidate / MANIFEST_FILE).read_bytes() == to_json(envelope):
                candidate.rename(target)  # released, and here since it was measured
            else:
                shutil.rmtree(candidate)
        if target.is_dir():
            if manifest.round == self._sound or is_sound(target, manifest, envelope):
                self._sound = manifest.round
                return target
            _log.warning("checkpoint %d is damaged on this disk; fetching it again", manifest.round)
            shutil.rmtree(target)
        self._tell(f"fetching checkpoint {manifest.round}")
        came = self._fetch(manifest, envelope, target)
        self._sound = manifest.round
        _log.info("checkpoint %d is here (%s bytes came)", manifest.round, f"{came:,}")
        state = self._standing.state
        self._home.prune(
            contributed=state.contributed, newest=state.round, max_staleness=state.max_staleness
        )
        return target

    def candidate(self, envelope: Envelope, newest: Envelope, parent: Manifest) -> Manifest:
        """Fetch what is to be the next consensus into the candidate's folder; return its manifest.

        Raises:
            UntrustedError: It does not follow from the newest checkpoint.
        """
        manifest = self.verified(envelope, what="candidate")
        if manifest.parent != payload_digest(newest) or manifest.round != parent.round + 1:
            raise UntrustedError("the candidate does not follow from the newest checkpoint")
        folder = self._home.candidate
        if folder.is_dir() and not is_sound(folder, manifest, envelope):
            shutil.rmtree(folder)
        if not folder.is_dir():
            self._tell(f"fetching candidate {manifest.round}")
            self._fetch(manifest, envelope, folder)
        return manifest

    def _fetch(self, manifest: Manifest, envelope: Envelope, target: Path) -> int:
        """Fetch a checkpoint; return the bytes that came.

        Raises:
            UnavailableError: The coordinator has it no more, which takes a new look at what it has:
                a candidate may be decided about while it comes, a checkpoint be replaced and gone.
            UntrustedError: What stands beside its vector is not what genesis has; it is not kept.
        """
        try:
            came = self._home.fetch(
                self._fetcher(), manifest, envelope, target=target, on_bytes=self._on_bytes
            )
        except RejectedError as error:
            raise UnavailableError(
                f"checkpoint {manifest.round} cannot be fetched any more: {error}"
            ) from error
        genesis = Manifest.parsed(self._lineage.first().payload, what="genesis manifest")
        try:
            if genesis.origin is not None:
                require_beside(open_vector_file(target / MODEL_FILE), genesis.origin)
        except UntrustedError:
            shutil.rmtree(target)
            raise
        return came

    def pool(self, plan: RoundPlan) -> Path:
        """Return the federation's open pool, fetched if it is not here."""
        if plan.shared is None:
            raise ValueError("the plan has no shared slice")
        target = self._home.folder / "pool" / f"{plan.shared.pool_digest}.txt"
        if not target.is_file():
            entry = FileEntry(
                name="pool.txt",
                size_bytes=plan.shared.pool_bytes,
                digest=plan.shared.pool_digest,
            )
            fetched = self._fetcher().fetch(entry, self._home.folder / "pool" / ".parts")
            sync_path(fetched)
            fetched.rename(target)
        return target


def is_sound(checkpoint: Path, manifest: Manifest, envelope: Envelope) -> bool:
    """Whether the files of a checkpoint that an earlier process fetched are what they should be."""
    try:
        return (checkpoint / MANIFEST_FILE).read_bytes() == to_json(envelope) and all(
            file_entry(checkpoint, entry.name) == entry for entry in manifest.files
        )
    except OSError:
        return False
