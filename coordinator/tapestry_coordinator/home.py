"""A coordinator's folder: what lies where, and the secrets in it.

```
coordinator.toml     settings, edited by people
policy.toml          what the federation has agreed upon, edited by people
ca/                  the federation's root of trust (0600)
identity/            the coordinator's signing key, TLS key and certificate (0600)
coordinator.db       the registry
pool.txt             the open pool of text, if the federation has one
contributions/       as received, by round
outer/               the outer optimizer's state, by round
published/           checkpoints: round-000000 is genesis
candidates/          the newest round's, while members measure it
live.json            what happens now, for the web page; there while `serve` runs (0600)
page/                the web page's password, secret and results of verifications (0600)
unsettled.json       the newest round, until its checkpoint is on the disk
ledger/              the ledger as static files: any web server that has them is a mirror
.spare/              files of old rounds whose space the next ones use again
.incoming/           checkpoints on their way here from the store of blobs
.backup/             files of a backup while it is being made
notes/               what the operator adds to model cards, by round
```
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import MANIFEST_FILE, folder_name, read_envelope
from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.policy import (
    POLICY_FILE,
    FederationPolicy,
    load_policy,
    save_policy,
)
from tapestry.cli.running import default_home
from tapestry.config import parse_settings
from tapestry.errors import ConfigError
from tapestry.identity.certificates import Authority, load_authority
from tapestry.identity.keys import load_signing_key
from tapestry.ledger.folder import LedgerFolder
from tapestry.storage.spares import Spares
from tapestry_coordinator import settings
from tapestry_coordinator.live import LIVE_FILE


@dataclass(frozen=True, slots=True)
class CoordinatorHome:
    """Paths below a coordinator's folder."""

    folder: Path
    storage: tuple[tuple[str, str], ...] = ()
    """Keys of `[storage]` whose values differ from the file's, in this process."""

    @property
    def ca(self) -> Path:
        """The certificate authority."""
        return self.folder / "ca"

    @property
    def signing_key(self) -> Path:
        """The Ed25519 key that signs plans, receipts and manifests."""
        return self.folder / "identity" / "signing.key"

    @property
    def tls_key(self) -> Path:
        """The P-256 key of the TLS certificate."""
        return self.folder / "identity" / "tls.key"

    @property
    def live(self) -> Path:
        """What happens now, for the web page."""
        return self.folder / LIVE_FILE

    @property
    def page(self) -> Path:
        """What the web page keeps."""
        return self.folder / "page"

    @property
    def pool(self) -> Path:
        """The open pool of text; absent if the federation has none."""
        return self.folder / "pool.txt"

    @property
    def contributions(self) -> Path:
        """Contributions by round."""
        return self.folder / "contributions"

    @property
    def published(self) -> Path:
        """Published checkpoints."""
        return self.folder / "published"

    @property
    def ledger(self) -> LedgerFolder:
        """The ledger as static files."""
        return LedgerFolder(self.folder / "ledger")

    def checkpoint(self, round_number: int) -> Path:
        """The published checkpoint of a round."""
        return self.published / folder_name(round_number)

    def candidate(self, round_number: int) -> Path:
        """The checkpoint of a round while members measure it."""
        return self.folder / "candidates" / folder_name(round_number)

    def notes(self, round_number: int) -> Path:
        """What the operator adds to a checkpoint's model card."""
        return self.folder / "notes" / folder_name(round_number)

    def outer_state(self, round_number: int) -> Path:
        """The outer optimizer's state after a round."""
        return self.folder / "outer" / f"{folder_name(round_number)}.f32"

    @property
    def spare_models(self) -> Spares:
        """Where the models of checkpoints that are kept no more wait for their successors."""
        return Spares(self.folder, "model")

    @property
    def spare_states(self) -> Spares:
        """The same for the outer optimizer's state."""
        return Spares(self.folder, "state")

    def load_settings(self) -> settings.CoordinatorSettings:
        """Read `coordinator.toml`."""
        read = settings.load(self.folder)
        if not self.storage:
            return read
        table = {**read.storage.model_dump(), **dict(self.storage)}
        storage = parse_settings(table, settings.StorageSettings, where="[storage]")
        return read.model_copy(update={"storage": storage})

    @property
    def policy(self) -> Path:
        """The federation's policy, as people edit it."""
        return self.folder / POLICY_FILE

    def load_policy(self) -> FederationPolicy:
        """Read `policy.toml`."""
        return load_policy(self.policy)

    def save_policy(self, policy: FederationPolicy) -> None:
        """Write `policy.toml`."""
        save_policy(self.policy, policy)

    def load_signing_key(self) -> Ed25519PrivateKey:
        """Read the signing key."""
        return load_signing_key(self.signing_key)

    def load_authority(self) -> Authority:
        """Read the root of trust."""
        return load_authority(self.ca)

    def load_genesis(self) -> Lineage:
        """Read and verify the genesis manifest."""
        path = self.checkpoint(0) / MANIFEST_FILE
        return Lineage(read_envelope(path, what="genesis manifest"))


def find_home(folder: Path | None) -> CoordinatorHome:
    """Return the home that a command means: `folder`, the working directory, or the default.

    Raises:
        ConfigError: There is none.
    """
    is_here = Path(settings.SETTINGS_FILE).is_file()
    return require_home(folder or (Path() if is_here else default_home("coordinator")))


def require_home(folder: Path) -> CoordinatorHome:
    """Return the coordinator's home at `folder`.

    Raises:
        ConfigError: There is none.
    """
    if not (folder / settings.SETTINGS_FILE).is_file():
        raise ConfigError(
            f"{folder}: no coordinator here (no {settings.SETTINGS_FILE}); make one with "
            f"`tapestry coordinator init {folder} --name NAME`"
        )
    return CoordinatorHome(folder.resolve())
