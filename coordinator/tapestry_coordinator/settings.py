"""`coordinator.toml`: what the coordinator's operator decides."""

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, FiniteFloat, field_validator, model_validator

from tapestry.checkpoints.statements import InnerSettings
from tapestry.config import Settings, commented_toml, load_settings
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.events import RoundRules
from tapestry_coordinator.web.settings import PageSettings

SETTINGS_FILE = "coordinator.toml"

Seconds = Annotated[FiniteFloat, Field(ge=0)]


class NetworkSettings(Settings):
    """Where the coordinator listens, and under which address nodes find it."""

    listen: str = "0.0.0.0:7443"
    """host:port for members, over mutual TLS."""
    enrolment_listen: str = "0.0.0.0:7444"
    """host:port for enrolment; may be closed by a firewall while no invitation is open."""
    address: str
    """host:port that members dial."""
    enrolment_address: str
    """host:port in invitations."""


class RoundsSettings(Settings):
    """How rounds open, wait, and close."""

    total: Annotated[int, Field(ge=0)] = 0
    """Rounds to run; 0 means without end."""
    quorum: Annotated[int, Field(ge=1)] = 2
    """Fewest contributions that make an update; with fewer the base stays as it is."""
    quorum_tokens: Annotated[int, Field(ge=0)] = 0
    """Fewest tokens that they must have together, or the round is planned again at its deadline."""
    gather_seconds: Seconds = 10.0
    """Wait for further members once a quorum is connected, unless all are."""
    grace_seconds: Seconds = 300.0
    """Wait for the others once a quorum has contributed."""
    deadline_seconds: Annotated[FiniteFloat, Field(gt=0)] = 3600.0
    """A round closes this long after it opened, or is planned again if it has no quorum."""

    def rules(self) -> RoundRules:
        """Return these settings as the state machine takes them."""
        return RoundRules(**self.model_dump())


class InnerTable(Settings):
    """What nodes do between two contributions."""

    steps: int
    sequences: int
    accumulation: int = 1
    sequence_tokens: int
    learning_rate: float
    warmup_steps: int = 20
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    gradient_clip: float = 1.0

    def settings(self) -> InnerSettings:
        """Return these settings as a plan carries them."""
        return InnerSettings(**self.model_dump())

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self.settings()
        return self


class SharedSettings(Settings):
    """The open pool of text."""

    fraction: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.25
    """Share of every batch that comes from the pool, if the federation has one."""


class MembershipSettings(Settings):
    """How long invitations and certificates live."""

    invitation_hours: Annotated[FiniteFloat, Field(gt=0)] = 72.0
    certificate_days: Annotated[int, Field(ge=1, le=398)] = 30


class StorageSettings(Settings):
    """Where the registry and the large files are, if not in the coordinator's folder."""

    database: str = ""
    """postgresql+psycopg://user@host/name, so that a second coordinator can stand by; empty:
    coordinator.db in the folder. The password is better kept in ~/.pgpass (PGPASSFILE)."""
    blobs: str = ""
    """s3://bucket/prefix or file:///shared/folder, where contributions and checkpoints are kept
    too; empty: in the folder alone. Credentials come from the environment (AWS_ACCESS_KEY_ID)."""
    endpoint: str = ""
    """Of a store that speaks S3 and is not Amazon's, such as https://s3.example.org."""
    allow_plain_http: bool = False
    """Let `endpoint` be http:// on another machine: whoever is in between can read and change."""

    @field_validator("database")
    @classmethod
    def _known_database(cls, url: str) -> str:
        if url and not url.startswith(("postgresql+psycopg://", "sqlite:///")):
            raise ValueError(
                f"{url.split(':', 1)[0]!r:.40} is no database that Tapestry knows: write "
                "postgresql+psycopg://user@host/name, or leave it empty for a file in the folder"
            )
        return url

    @field_validator("blobs")
    @classmethod
    def _known_store(cls, url: str) -> str:
        if url and not re.match(r"s3://[^/]+|file:///.", url):
            raise ValueError(
                f"{url!r:.60}: write s3://bucket/prefix or file:///shared/folder, or leave it "
                "empty for the coordinator's folder"
            )
        return url

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        parts = urlsplit(self.endpoint)
        if self.endpoint and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError(f"endpoint: {self.endpoint!r:.60}: write https://host or host:port")
        is_far = parts.hostname not in {"localhost", "127.0.0.1", "::1"}
        if parts.scheme == "http" and is_far and not self.allow_plain_http:
            raise ValueError(
                "endpoint: http:// leaves contributions unprotected on the way: write https://, or "
                "set allow_plain_http = true if the network between is yours alone"
            )
        return self


class KeepSettings(Settings):
    """How much history stays on the disk; 0 keeps everything."""

    checkpoints: Annotated[int, Field(ge=0)] = 0
    """The newest that many, and genesis, which always stays."""


class CoordinatorSettings(Settings):
    """The whole file."""

    network: NetworkSettings
    rounds: RoundsSettings = RoundsSettings()
    inner: InnerTable
    shared: SharedSettings = SharedSettings()
    membership: MembershipSettings = MembershipSettings()
    keep: KeepSettings = KeepSettings()
    storage: StorageSettings = StorageSettings()
    page: PageSettings = PageSettings()


def load(folder: Path) -> CoordinatorSettings:
    """Read `coordinator.toml` in `folder`."""
    return load_settings(folder / SETTINGS_FILE, CoordinatorSettings)


def save(folder: Path, settings: CoordinatorSettings) -> None:
    """Write `coordinator.toml` with every key and what it means."""
    head = "Settings of this coordinator; read again at every start."
    has_secret = urlsplit(settings.storage.database).password is not None
    mode = 0o600 if has_secret else 0o644
    write_atomic(folder / SETTINGS_FILE, commented_toml(settings, head=head), mode=mode)
