"""A node's folder: what lies where.

```
node.toml      the institution's policy, edited by people
corpus.toml    the institution's text, source by source, edited by people (optional)
identity/      keys and certificates (0600)
checkpoints/   consensus checkpoints as fetched, the newest few
pool/          the federation's open pool of text, if it has one
corpus/        the institution's text, tokenized (0700); history.jsonl: which sources took part in
               which round; never leaves
trainer/       the inner optimizer's state, kept across rounds; the residual of error feedback;
               a round half trained
spool/         a finished contribution until its receipt is here
receipts/      the coordinator's signed acknowledgements, and the contributions they are for
egress.jsonl   hash-chained record of everything that left (tapestry.wire.egress)
egress-seen.json   how far `status` has verified it (tapestry_node.departed)
egress-kernel.jsonl   what the kernel says was sent (tapestry.wire.kernel)
approvals/     what a person has decided about contributions, if the policy asks for that
policies/      every version of the policy under which something left, by its digest
canaries/      random text planted on request, to measure memorisation (0700)
kept/          the last contribution, if `keep_last_contribution` says so
lineage.jsonl  every manifest from genesis to the newest that was verified
ledger/        a copy of the federation's ledger, with the last head that this node accepted
island/        checkpoints that this node has trained on its own, apart from the consensus
left.json      when this node ended its membership, if it did
state.json     where this node stands
progress.json  what it does right now, for status, the local page and the demonstration
page.url       where the local page is while it is served, with the token that opens it (0600)
.spare/        files of finished rounds whose space the next ones use again
```
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from tapestry.checkpoints.folder import MANIFEST_FILE, STATEMENTS, building, folder_name
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.config import commented_toml, load_settings
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.identity.membership import IdentityFolder
from tapestry.ledger.folder import LedgerFolder
from tapestry.storage.atomic import write_atomic
from tapestry.storage.spares import Spares
from tapestry.wire.egress import EGRESS_FILE
from tapestry.wire.fetching import Fetcher
from tapestry.wire.kernel import KERNEL_FILE
from tapestry_node.policy import SETTINGS_FILE, NodeSettings
from tapestry_node.residual import SPOOLED_RESIDUAL

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """What must survive a restart, beside the files themselves."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    round: int = -1
    """Newest consensus checkpoint that was verified; -1: none yet."""
    manifest: str = ""
    """Its digest."""
    evaluated: int = -1
    """Newest checkpoint that was measured here."""
    contributed: int = 0
    """Newest round whose plan was answered, with a receipt."""
    answered: int = 0
    """Newest round that uses a contribution of this node, which may have answered an older plan."""
    max_staleness: int = 0
    """By how many rounds an answer to the newest plan may be late."""
    objective: str = ""
    """What the federation trains, as its genesis says."""


_STATE = TypeAdapter(NodeState)


@dataclass(frozen=True, slots=True)
class NodeHome:
    """Paths below a node's folder, and the small files in it."""

    folder: Path

    @property
    def identity(self) -> IdentityFolder:
        """Keys and certificates."""
        return IdentityFolder(self.folder / "identity")

    @property
    def egress(self) -> Path:
        """The record of everything that left."""
        return self.folder / EGRESS_FILE

    @property
    def egress_seen(self) -> Path:
        """How far the egress ledger was verified by whoever looks again and again."""
        return self.folder / "egress-seen.json"

    @property
    def kernel(self) -> Path:
        """What the kernel says was sent."""
        return self.folder / KERNEL_FILE

    @property
    def receipts(self) -> Path:
        """The coordinator's acknowledgements."""
        return self.folder / "receipts"

    @property
    def policies(self) -> Path:
        """Every version of the policy."""
        return self.folder / "policies"

    @property
    def canaries(self) -> Path:
        """Text that was planted."""
        return self.folder / "canaries"

    @property
    def kept(self) -> Path:
        """The last contribution, if it is kept."""
        return self.folder / "kept"

    @property
    def corpus(self) -> Path:
        """Packed text, and which of it took part in which round."""
        return self.folder / "corpus"

    @property
    def checkpoints(self) -> Path:
        """Fetched checkpoints."""
        return self.folder / "checkpoints"

    @property
    def lineage(self) -> Path:
        """Manifests from genesis on, one a line."""
        return self.folder / "lineage.jsonl"

    @property
    def ledger(self) -> LedgerFolder:
        """The copy of the federation's ledger."""
        return LedgerFolder(self.folder / "ledger")

    @property
    def island(self) -> Path:
        """What this node has trained on its own."""
        return self.folder / "island"

    @property
    def left(self) -> Path:
        """When this node ended its membership; absent while it is a member."""
        return self.folder / "left.json"

    @property
    def progress(self) -> Path:
        """What the node does right now."""
        return self.folder / "progress.json"

    @property
    def page_address(self) -> Path:
        """Where the local page is, with the token that opens it."""
        return self.folder / "page.url"

    def checkpoint(self, round_number: int) -> Path:
        """The folder of a fetched checkpoint."""
        return self.checkpoints / folder_name(round_number)

    def spool(self, round_number: int) -> Path:
        """The folder of a contribution without a receipt."""
        return self.folder / "spool" / folder_name(round_number)

    def trainer_state(self, round_number: int) -> Path:
        """The inner optimizer's state after a round."""
        return self.folder / "trainer" / f"{folder_name(round_number)}.safetensors"

    @property
    def unfinished(self) -> Path:
        """A round half trained, if it takes long."""
        return self.folder / "trainer" / "unfinished.safetensors"

    @property
    def approvals(self) -> Path:
        """What a person has decided about contributions."""
        return self.folder / "approvals"

    @property
    def launched(self) -> Path:
        """Where the guard and processes that a launcher has started find each other."""
        return self.folder / "trainer" / "launched"

    @property
    def residual(self) -> Path:
        """What a lossy codec left unsent, in rounds with a receipt; never leaves."""
        return self.folder / "trainer" / "residual.f32"

    def spooled(self) -> list[Path]:
        """Return the folders of contributions without a receipt, the oldest first."""
        return sorted((self.folder / "spool").glob("round-*"))

    @property
    def spare_models(self) -> Spares:
        """Where models of checkpoints that are kept no more wait for their successors."""
        return Spares(self.folder, "model")

    @property
    def spare_spools(self) -> Spares:
        """The same for sent contributions."""
        return Spares(self.folder, "spool")

    def make_folders(self) -> None:
        """Make what is missing; only the owner may read."""
        for name in ("checkpoints", "pool", "corpus", "trainer", "spool", "receipts"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def load_settings(self) -> NodeSettings:
        """Read `node.toml`; one with the defaults is written if there is none."""
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            self.save_settings(NodeSettings())
        return load_settings(path, NodeSettings)

    def save_settings(self, settings: NodeSettings) -> None:
        """Write `node.toml` with every key and what it means."""
        head = "What this node does and what it lets out; read again at every start."
        write_atomic(self.folder / SETTINGS_FILE, commented_toml(settings, head=head))

    def load_state(self) -> NodeState:
        """Read where the node stands.

        Raises:
            ConfigError: The file is damaged.
        """
        path = self.folder / "state.json"
        try:
            return _STATE.validate_json(path.read_text(encoding="utf-8"), strict=True)
        except FileNotFoundError:
            return NodeState()
        except (OSError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise ConfigError(
                f"{path}: cannot be read ({cause}); remove it, and the node takes its place in the "
                "federation up again from the newest checkpoint"
            ) from error

    def save_state(self, state: NodeState) -> None:
        """Write where the node stands, durably."""
        write_atomic(self.folder / "state.json", json.dumps(asdict(state)) + "\n")

    @property
    def candidate(self) -> Path:
        """The next checkpoint, while members measure it before it is published."""
        return self.checkpoints / "candidate"

    def fetch(
        self,
        fetcher: Fetcher,
        manifest: Manifest,
        envelope: Envelope,
        *,
        target: Path,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> int:
        """Fetch a checkpoint into a folder, by its step if its parent is here.

        Nobody waits for the disk: whoever finds the folder in another process verifies it.

        Args:
            fetcher: Connected to the coordinator.
            manifest: Verified.
            envelope: That it came in.
            target: New folder.
            on_bytes: Told how many bytes have come, and how many there are at most.

        Returns:
            Bytes that came over the line.
        """
        parts = self.checkpoints / ".parts"
        known = sorted(self.checkpoints.glob("round-*"), reverse=True)[:1]
        came, whole = 0, sum(entry.size_bytes for entry in manifest.files)

        def count(size: int) -> None:
            nonlocal came
            came += size
            if on_bytes is not None:
                on_bytes(came, max(came, whole))

        with building(target, durable=False) as folder:
            parent = self.checkpoint(manifest.round - 1)
            is_stepped = parent in known and fetcher.fetch_model_by_step(
                manifest,
                folder,
                parent=parent,
                parts=parts,
                on_bytes=count,
                spares=self.spare_models,
            )
            missing = [e for e in manifest.files if not (is_stepped and e.name == MODEL_FILE)]
            fetcher.fetch_files(
                missing,
                folder,
                parts=parts,
                known=known,
                on_bytes=count,
                spares=self.spare_models,
            )
            (folder / STATEMENTS).mkdir(exist_ok=True)
            write_atomic(folder / MANIFEST_FILE, to_json(envelope), durable=False)
        return came

    def prune(self, *, contributed: int, newest: int, max_staleness: int = 0) -> None:
        """Remove what no later step needs.

        Args:
            contributed: Newest round with a receipt.
            newest: Newest consensus checkpoint.
            max_staleness: By how many rounds a contribution may be late; those to the round of the
                newest checkpoint are late by one.
        """
        for folder in self.spooled():
            is_late = folder.name <= self.spool(max(0, newest - max_staleness)).name
            if is_late and not (folder / SPOOLED_RESIDUAL).is_file():
                shutil.rmtree(folder)
        past = sorted(self.checkpoints.glob("round-*"))[:-_KEPT_CHECKPOINTS]
        if past:
            self.spare_models.retire([past[-1] / MODEL_FILE])
        for folder in past:
            shutil.rmtree(folder)
        for path in sorted((self.folder / "trainer").glob("round-*.safetensors")):
            if path.name < self.trainer_state(contributed).name:
                path.unlink()


def require_node(folder: Path) -> NodeHome:
    """Return the node at `folder`.

    Raises:
        ConfigError: Nobody joined a federation there.
    """
    home = NodeHome(folder.resolve())
    home.identity.load()
    home.make_folders()
    return home
