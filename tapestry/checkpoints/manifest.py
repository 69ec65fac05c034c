"""The manifest: the coordinator's signed statement of what a checkpoint is and was made from.

A chain of manifests, each naming its parent by digest, leads from genesis to every checkpoint:
the lineage. The genesis manifest's digest is the federation's identity; it names the key that
signs all others. Beside the manifest stands the card: documentation and measurements, which come
after the checkpoint and are signed on their own, so that they can be renewed without touching it.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from tapestry.checkpoints.statements import (
    Attestation,
    Count,
    HexDigest,
    InnerSettings,
    MemberId,
    NotNegative,
    Positive,
    Share,
    Statement,
    Subject,
    payload_digest,
)
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import Envelope
from tapestry.params.downlink import DownlinkName

FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")
]


class FileEntry(Statement):
    """A published file."""

    name: FileName
    """Relative to the checkpoint's folder; at most one folder deep."""
    size_bytes: Count
    digest: HexDigest
    """SHA-256."""


class Participation(Statement):
    """One member's part in a round."""

    member_id: MemberId
    key: HexDigest
    """Raw Ed25519 public key, in hex, that signed the contribution: the member's, as enrolled."""
    tokens: Positive
    weight: Share
    """Applied as it stands here; a coordinate rule gives everybody one vote, 1 / K."""
    clip_factor: Share
    norm: NotNegative
    root: HexDigest
    contribution: HexDigest
    """SHA-256 of the contribution's signed payload."""
    staleness: Count = 0
    """Rounds between the base that it started from and that of this round; its weight, or where the
    rule gives everybody one vote its clip factor, is discounted for it."""
    base_round: Count | None = None
    """The checkpoint that it started from if it was late; None: that before this one."""
    neighbours: tuple[MemberId, ...] = ()
    """Members whose mean stood in this contribution's place, for a coordinate rule with mixing."""
    reason: str = ""
    """Why the weight is 0, for the member to answer; empty otherwise."""


class Absence(Statement):
    """A member of the cohort without a part in the round, and why."""

    member_id: MemberId
    reason: str


class OuterRecord(Statement):
    """The outer step as it was taken."""

    optimizer: Literal["sgd", "nesterov", "adam", "delayed-nesterov"]
    learning_rate: NotNegative
    momentum: Share
    """Of `adam`: beta1."""
    beta2: Share = 0.0
    epsilon: NotNegative = 0.0
    period: Positive = 1
    """Of `delayed-nesterov`: updates between two of its momentum."""
    position: Positive = 1
    """Of `delayed-nesterov`: which of those this one was; after `period` the first comes again."""
    state_before: HexDigest | None
    """What the checkpoint that the round started from says of `state_root`."""
    state_root: HexDigest | None
    """Merkle root over the float32 fragments of the state vectors after the step, those of
    fragment 0 first, the exact vector last if there is one; None if there is no state."""


class RuleRecord(Statement):
    """The aggregation rule and its parameters."""

    name: Literal[
        "mean", "trimmed-mean", "median", "multi-krum", "geometric-median", "centred-clipping"
    ] = "mean"
    byzantine: Count = 0
    """Members that may send anything, which trimmed-mean, multi-krum and mixing allow for."""
    mixing: bool = False
    """Whether nearest-neighbour mixing went before the rule."""
    merge: Literal["mean", "rda"] = "mean"
    radius: NotNegative = 1.0
    """Of centred-clipping, in median norms."""

    @property
    def described(self) -> str:
        """The rule and those of its parameters that had a part, for a person."""
        words = [f"rule {self.name}"]
        if self.mixing or self.name in {"trimmed-mean", "multi-krum"}:
            words.append(f"for up to {self.byzantine} liars")
        if self.name == "centred-clipping":
            words.append(f"with radius {self.radius:g}")
        if self.mixing:
            words.append("after nearest-neighbour mixing")
        return " ".join([*words, *(["merged by RDA"] if self.merge == "rda" else [])])


class RevertRecord(Statement):
    """Why a round left the consensus as it was."""

    candidate: HexDigest
    """SHA-256 of the signed payload of the manifest that was not published."""
    reason: str
    """What members found, or the operator's words."""


class ContinuedRecord(Statement):
    """The checkpoint of an older federation that is a new one's genesis, vector and all."""

    federation: str
    genesis: HexDigest
    """Manifest digest of the older federation's genesis: its identity."""
    manifest: HexDigest
    """Manifest digest of the checkpoint."""
    round: Count


class BesideRecord(Statement):
    """The tensors beside the vector: frozen parameters and buffers."""

    tensors: Positive
    elements: Count
    digest: HexDigest
    """See `tapestry.checkpoints.beside`."""


class GenesisRecord(Statement):
    """What only the first manifest says."""

    federation: str
    coordinator_key: HexDigest
    """Raw Ed25519 public key, in hex, that signs every manifest, plan and receipt."""
    root_certificate: HexDigest
    """SHA-256 of the federation's root certificate (DER)."""
    objective: str
    settings: dict[str, str | int | float | bool | None]
    """What the objective was created with, for people and for repetition; `trainable`: the patterns
    of the names of the parameters in the vector, if not all are."""
    seed: Count
    beside: BesideRecord | None = None
    """What every checkpoint has beside the vector, the same to the bit; None: nothing."""
    continues: ContinuedRecord | None = None
    """If the federation goes on with another one's model; that one's manifests are then in
    `tapestry/ancestry.jsonl`."""

    def trained_of(self, elements: int) -> str:
        """Return how many parameters there are, for a person, with `elements` in the vector."""
        patterns = self.settings.get("trainable")
        if patterns is None or self.beside is None:
            return f"{elements:,} parameters"
        whole = elements + self.beside.elements
        return f"{elements:,} of {whole:,} parameters are trained: {patterns}"


class RoundRecord(Statement):
    """How the checkpoint came from its parent."""

    plan: HexDigest
    """SHA-256 of the signed payload of the plan that closed the round."""
    policy: HexDigest
    """SHA-256 of the federation's policy in the plan; its text is `tapestry/policy.json`."""
    inner: InnerSettings
    codec: str
    quorum: Positive
    rule: RuleRecord = RuleRecord()
    gamma: Share
    """Of the token weights; 0 where the rule gives everybody one vote."""
    influence_cap: Share
    """Of the token weights; 1 where the rule gives everybody one vote."""
    clip: NotNegative
    participation: tuple[Participation, ...]
    absent: tuple[Absence, ...] = ()
    outer: OuterRecord
    downlink: DownlinkName = "float32"
    """How the published vector came from the exact one, which otherwise stays in the state."""
    reverted: RevertRecord | None = None
    """If members found the new consensus harmful: the vector and the outer state are the parent's,
    and nobody's contribution has a weight."""


class Manifest(Attestation):
    """What a checkpoint is: its place in the lineage, its files, its vector, and its round."""

    predicate_type = "urn:tapestry:round:v1"

    round: Count
    """0 for genesis; checkpoint t is what round t produced."""
    genesis: HexDigest | None
    """Digest of the genesis manifest; None in genesis itself."""
    parent: HexDigest | None
    created_at: NotNegative
    """Unix seconds."""
    layout: HexDigest
    elements: Positive
    vector_root: HexDigest
    """Merkle root over the SHA-256 of the vector's fragments as the model's file holds them."""
    files: tuple[FileEntry, ...]
    step: FileEntry | None = None
    """With a delta downlink: what turns the parent's vector into this one. Not one of `files`: a
    copy of the checkpoint is whole without it."""
    origin: GenesisRecord | None = None
    made: RoundRecord | None = None
    software: dict[str, str] = Field(default_factory=dict)
    """Versions by package, and as `source` the SHA-256 over this one's own code."""

    def subjects(self) -> tuple[Subject, ...]:
        """Return the published files."""
        return file_subjects(self.files)


class CardEntry(Statement):
    """One member's measurement of the checkpoint on its own held-out text."""

    member_id: MemberId
    language: str
    bits_per_byte: Annotated[FiniteFloat, Field(ge=0)]
    held_out_bytes: Positive


class DissentEntry(Statement):
    """A member for whose text the checkpoint is worse than the one before, beyond the policy."""

    member_id: MemberId
    before: Annotated[FiniteFloat, Field(ge=0)]
    """Bits per byte of the parent."""
    after: Annotated[FiniteFloat, Field(ge=0)]


class Card(Attestation):
    """Documentation of one checkpoint: renewed as measurements come in.

    A renewed card is written before its files, and says what may still stand in their places: so
    the folder verifies at every moment of a renewal, and after a crash in the middle of one.
    """

    predicate_type = "urn:tapestry:card:v1"

    manifest: HexDigest
    files: tuple[FileEntry, ...]
    replaced: tuple[FileEntry, ...] = ()
    """Files of the card before; an empty one stands for a name that was not there."""
    evaluations: tuple[CardEntry, ...] = ()
    dissent: tuple[DissentEntry, ...] = ()

    def subjects(self) -> tuple[Subject, ...]:
        """Return the files that it covers."""
        return file_subjects(self.files)


def file_subjects(files: Sequence[FileEntry]) -> tuple[Subject, ...]:
    """Return files as what an attestation speaks of."""
    return tuple(Subject(name=entry.name, digest={"sha256": entry.digest}) for entry in files)


class Lineage:
    """The verified chain of manifests from genesis on."""

    def __init__(self, genesis: Envelope, *, pinned: str | None = None) -> None:
        """Start a chain.

        Args:
            genesis: Envelope of the manifest of round 0; it names the key that signed it.
            pinned: Hex digest that the genesis must have, if the caller knows its federation.

        Raises:
            UntrustedError: It is no genesis, not self-consistent, or another federation's.
        """
        what = "genesis manifest"
        claimed = Manifest.parsed(genesis.payload, what=what)
        if claimed.origin is None or claimed.round != 0 or claimed.parent or claimed.genesis:
            raise UntrustedError(
                f"{what}: is the manifest of round {claimed.round}, not of genesis"
            )
        self.coordinator_key = bytes.fromhex(claimed.origin.coordinator_key)
        Manifest.opened(genesis, public_key=self.coordinator_key, what=what)
        self.genesis_digest = payload_digest(genesis)
        if pinned is not None and pinned != self.genesis_digest:
            raise UntrustedError(
                f"checkpoint of another federation: its genesis is {self.genesis_digest[:16]}, "
                f"expected {pinned[:16]}"
            )
        self.origin = claimed.origin
        self.genesis = self.newest = claimed
        self.parent: Manifest | None = None
        """Of the newest."""
        self.digests = [self.genesis_digest]
        """By round."""
        self.earlier: Counter[str] = Counter()
        """How many contributions each member made to rounds before the newest."""
        self.keys: dict[str, bytes] = {}
        """Raw Ed25519 key of each member that ever contributed, its last one."""

    @property
    def newest_digest(self) -> str:
        """Of the newest manifest."""
        return self.digests[-1]

    def extend(self, envelope: Envelope) -> Manifest:
        """Verify the next manifest and make it the newest.

        Raises:
            UntrustedError: It does not follow from the newest one.
        """
        what = f"manifest after round {self.newest.round}"
        manifest = Manifest.opened(envelope, public_key=self.coordinator_key, what=what)
        if manifest.round != self.newest.round + 1:
            raise UntrustedError(f"{what}: is of round {manifest.round}; a link is missing")
        if manifest.parent != self.newest_digest:
            raise UntrustedError(f"{what}: its parent is not the checkpoint of that round")
        if manifest.genesis != self.genesis_digest:
            raise UntrustedError(f"{what}: belongs to another federation")
        if manifest.layout != self.newest.layout:
            raise UntrustedError(f"{what}: the model's layout changed")
        if self.newest.made is not None:
            self.earlier.update(part.member_id for part in self.newest.made.participation)
        if manifest.made is not None:
            for part in manifest.made.participation:
                self.keys[part.member_id] = bytes.fromhex(part.key)
        self.parent, self.newest = self.newest, manifest
        self.digests.append(payload_digest(envelope))
        return manifest


def verify_lineage(envelopes: Sequence[Envelope], *, pinned: str | None = None) -> Lineage:
    """Return the lineage of `envelopes`, oldest first, beginning with genesis.

    Raises:
        UntrustedError: The chain is empty or broken; the message names the first bad link.
    """
    if not envelopes:
        raise UntrustedError("lineage: empty; expected at least the genesis manifest")
    lineage = Lineage(envelopes[0], pinned=pinned)
    for envelope in islice(envelopes, 1, None):
        lineage.extend(envelope)
    return lineage
