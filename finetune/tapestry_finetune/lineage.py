"""What a community signs about its localized model: where it comes from, and what it was given."""

from typing import Annotated

from pydantic import Field, FiniteFloat

from tapestry.checkpoints.manifest import FileEntry, file_subjects
from tapestry.checkpoints.statements import (
    Attestation,
    Count,
    HexDigest,
    NotNegative,
    Share,
    Statement,
    Subject,
)

Words = Annotated[str, Field(max_length=4096)]


class BaseRecord(Statement):
    """The model that it is to be laid on."""

    manifest: HexDigest | None
    """Of the consensus checkpoint; None: the base was not verified."""
    federation: HexDigest | None
    round: Count | None
    tensors: HexDigest
    architecture: HexDigest
    tokenizer: HexDigest
    licence: Words


class StageRecord(Statement):
    """One stage of the training."""

    name: Words
    method: Words
    steps: Count
    tokens: Count
    """That were learnt from, padding left out."""
    rows: Count
    learning_rate: NotNegative
    replay: Share
    """Part of what was trained on that came from the federation's open text."""


class SourceRecord(Statement):
    """One file that was learnt from: never its text."""

    name: Words
    licence: Words
    rows: Count
    size_bytes: Count
    digest: HexDigest
    """SHA-256 of the file."""


class Localization(Attestation):
    """The lineage of a localized model."""

    predicate_type = "urn:tapestry:localization:v1"

    name: Words
    languages: tuple[Words, ...]
    made_at: FiniteFloat
    """Unix seconds."""
    key: HexDigest
    """Raw Ed25519 key of the community, which has signed this."""
    base: BaseRecord
    parent: HexDigest | None = None
    """Digest of the statement of the bundle that was carried over to this base."""
    carried_by: Words = ""
    """How: copied at a scale, touched up, trained anew, distilled."""
    stages: tuple[StageRecord, ...]
    sources: tuple[SourceRecord, ...]
    recipe: HexDigest
    charter: HexDigest | None = None
    evaluation: HexDigest | None = None
    forced: Words = ""
    """Why it was published below its own quality floor; empty: it was not."""
    versions: dict[str, str]
    seed: int
    licence: Words
    redistribute: bool = True
    """Whether others may be given the weights, merged into the base or not."""
    files: tuple[FileEntry, ...]

    def subjects(self) -> tuple[Subject, ...]:
        """Return the files of the bundle."""
        return file_subjects(self.files)
