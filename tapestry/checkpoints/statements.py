"""What coordinator and nodes sign for each other: plans, contributions, receipts.

Plain data with strict validation, no I/O: they come from outside. Unknown fields are ignored, so
that a later version may add some; unknown values of a closed set are refused. Digests are hex.

They travel as in-toto Statements v1 (github.com/in-toto/attestation), so that tools which know
nothing of federations can verify and store them: the predicate is what is said, the subject what it
is said of.
"""

import hashlib
import json
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import Envelope, canonical_json, open_envelope, sign

HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MemberId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")]
Positive = Annotated[int, Field(ge=1, le=2**53 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]


Figure = Annotated[FiniteFloat, Field(ge=-1e30, le=1e30)]
Statistics = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[tuple[Figure, ...], Field(max_length=1024)],
    ],
    Field(max_length=16),
]
"""Small additive statistics by name; so bounded that sums over any federation stay finite."""


class Statement(BaseModel):
    """A frozen value that can be signed, sent, and read back."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    payload_type: ClassVar[str]

    def payload(self) -> bytes:
        """Return the canonical JSON that is signed and hashed."""
        return canonical_json(self.model_dump(mode="json"))

    def signed(self, key: Ed25519PrivateKey) -> Envelope:
        """Return this statement under a signature."""
        return sign(self.payload_type, self.payload(), key)

    @classmethod
    def opened(cls, envelope: Envelope, *, public_key: bytes, what: str) -> Self:
        """Return the statement in `envelope`, parsed only after its signature is verified.

        Args:
            envelope: As received.
            public_key: Raw Ed25519 key of whoever must have signed it.
            what: Begins the message of a refusal, such as "plan of round 3".

        Raises:
            UntrustedError: Signature, type, or a field is wrong.
        """
        payload = open_envelope(
            envelope, payload_type=cls.payload_type, public_key=public_key, what=what
        )
        return cls.parsed(payload, what=what)

    @classmethod
    def parsed(cls, payload: bytes, *, what: str) -> Self:
        """Read a payload whose signature was verified, or is verified right after.

        Raises:
            UntrustedError: A field is missing or out of range; the message names it.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise _first_fault(error, what) from error


class Subject(Statement):
    """Something that an attestation speaks of."""

    name: str
    digest: dict[str, str]
    """By algorithm."""


class Attestation(Statement):
    """A statement that is signed and sent as an in-toto Statement v1."""

    payload_type: ClassVar[str] = "application/vnd.in-toto+json"
    predicate_type: ClassVar[str]

    def subjects(self) -> tuple[Subject, ...]:
        """Return what it speaks of, which follows from its fields."""
        raise NotImplementedError

    def payload(self) -> bytes:
        """Return the canonical JSON of the in-toto Statement."""
        return canonical_json(
            {
                "_type": _STATEMENT_TYPE,
                "subject": [subject.model_dump(mode="json") for subject in self.subjects()],
                "predicateType": self.predicate_type,
                "predicate": self.model_dump(mode="json"),
            }
        )

    @classmethod
    def parsed(cls, payload: bytes, *, what: str) -> Self:
        """Read a payload whose signature was verified, or is verified right after.

        Raises:
            UntrustedError: It is a statement of another type, a field is missing or out of range,
                or its subject is not what the fields speak of; the message names it.
        """
        try:
            found = _Head.model_validate_json(payload).predicate_type
            if found != cls.predicate_type:
                raise UntrustedError(
                    f"{what}: a statement of type {found[:80]!r}, expected "
                    f"{cls.predicate_type!r}; discard it"
                )
            whole = _in_toto(cls).model_validate_json(payload)
        except ValidationError as error:
            raise _first_fault(error, what) from error
        made: Self = whole.predicate
        if whole.subject != made.subjects():
            raise UntrustedError(f"{what}: its subject is not what it speaks of; discard it")
        return made


_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_Said = TypeVar("_Said", bound=Attestation)


class _Head(BaseModel):
    """What any in-toto Statement begins with, before anything is known of its predicate."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicate_type: str = Field(alias="predicateType")


class _InToto(BaseModel, Generic[_Said]):
    """An in-toto Statement whose predicate is `_Said`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    subject: tuple[Subject, ...]
    predicate: _Said


@cache
def _in_toto(said: type[_Said]) -> type[_InToto[_Said]]:
    """Return the statement with this predicate; pydantic would forget it, and make it anew."""
    return _InToto[said]  # type: ignore[valid-type]


def _first_fault(error: ValidationError, what: str) -> UntrustedError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "predicate")
    return UntrustedError(f"{what}: {field}: {first['msg']}")


def predicate_of(payload: bytes) -> dict[str, Any]:
    """Return the predicate of an attestation that was validated when it was stored or sent.

    Raises:
        ValueError: It is none.
    """
    match json.loads(payload):
        case {"predicate": dict(predicate)}:
            return predicate
    raise ValueError("not an in-toto Statement")


def payload_digest(envelope: Envelope) -> str:
    """Return the hex SHA-256 of the signed bytes: a statement's identity."""
    return hashlib.sha256(envelope.payload).hexdigest()


class InnerSettings(Statement):
    """What every node does between two contributions."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """H: optimizer steps."""
    sequences: Annotated[int, Field(ge=1, le=65_536)]
    """Sequences in a micro-batch."""
    accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    """Micro-batches in an optimizer step."""
    sequence_tokens: Annotated[int, Field(ge=8, le=1_048_576)]
    """Tokens predicted in a sequence."""
    learning_rate: Annotated[FiniteFloat, Field(gt=0, le=1)]
    warmup_steps: Count
    """Steps of linear warm-up, counted over all rounds; constant afterwards."""
    weight_decay: NotNegative = 0.1
    beta1: Share = 0.9
    beta2: Share = 0.99
    gradient_clip: NotNegative = 1.0
    """Upper bound of the gradient's norm; 0 turns clipping off."""

    @property
    def tokens(self) -> int:
        """Tokens that a node sees in a round."""
        return self.steps * self.accumulation * self.sequences * self.sequence_tokens


class SharedSlice(Statement):
    """The open pool of text, and how much of every batch comes from it."""

    fraction: Share
    """Share of each batch, phi."""
    pool_digest: HexDigest
    """SHA-256 of the pool, a UTF-8 text file with blank lines between documents."""
    pool_bytes: Positive


class RoundPlan(Attestation):
    """The coordinator's declaration of one round: never code, only values."""

    predicate_type = "urn:tapestry:plan:v1"

    genesis: HexDigest
    """Manifest digest of the federation's genesis checkpoint."""
    round: Positive
    attempt: Positive
    """Counts the plans of this round: a round without quorum is planned again."""
    base: HexDigest
    """Manifest digest of the checkpoint to start from: that of round - 1."""
    layout: HexDigest
    policy: HexDigest
    """SHA-256 of the federation's policy, as canonical JSON."""
    cohort: tuple[MemberId, ...]
    quorum: Positive
    grace_seconds: NotNegative
    deadline: NotNegative
    """Unix seconds at which the round closes regardless."""
    objective: str
    inner: InnerSettings
    codec: str
    max_element: Annotated[FiniteFloat, Field(gt=0)]
    """Largest absolute element of a pseudo-gradient that is accepted."""
    shared: SharedSlice | None = None
    seed: Count
    statistics: dict[str, tuple[FiniteFloat, ...]] = Field(default_factory=dict)
    """Sums of the objective's statistics over the contributions of the round before."""
    steps_by_member: dict[MemberId, Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        default_factory=dict
    )
    """H of those whose speed is known, in a round of equal time; the others take `inner.steps`."""
    max_staleness: Count = 0
    """By how many rounds an answer to this plan may be late and still be used."""
    witnesses: Count = 0
    """How many members must have cosigned the head of the ledger that holds the base."""
    is_asynchronous: bool = False
    """Whether a member takes up the newest plan as soon as it has delivered, though what it
    delivered is used by that plan's round."""

    def subjects(self) -> tuple[Subject, ...]:
        """Return the checkpoint to start from, by its manifest."""
        return (Subject(name=f"checkpoint {self.round - 1}", digest={"sha256": self.base}),)

    def of(self, member_id: str) -> Self:
        """Return this plan with the inner steps that it asks of one member."""
        steps = self.steps_by_member.get(member_id, self.inner.steps)
        return self.model_copy(update={"inner": self.inner.model_copy(update={"steps": steps})})


class Contribution(Attestation):
    """What a node declares about the vector that it sends."""

    predicate_type = "urn:tapestry:contribution:v1"

    genesis: HexDigest
    round: Positive
    base: HexDigest
    member_id: MemberId
    codec: str
    fragments: Positive
    root: HexDigest
    """Merkle root over the SHA-256 of the encoded fragments."""
    tokens: Positive
    """Tokens seen by the inner steps, padding and shared slice included."""
    steps: Positive
    norm: NotNegative
    """Euclidean norm of the decoded pseudo-gradient."""
    metrics: dict[Literal["loss_first", "loss_last", "seconds"], FiniteFloat] = Field(
        default_factory=dict
    )
    statistics: Statistics = Field(default_factory=dict)

    def subjects(self) -> tuple[Subject, ...]:
        """Return the encoded vector, by the root over its fragments."""
        name = f"pseudo-gradient of {self.member_id} for round {self.round}"
        return (Subject(name=name, digest={"rfc6962Sha256": self.root}),)


class Receipt(Attestation):
    """The coordinator's acknowledgement: the contribution is durable."""

    predicate_type = "urn:tapestry:receipt:v1"

    genesis: HexDigest
    round: Positive
    member_id: MemberId
    contribution: HexDigest
    """SHA-256 of the contribution's signed payload."""
    root: HexDigest
    accepted_at: NotNegative
    """Unix seconds."""
    used_round: Count = 0
    """The round whose update it is a part of, later than `round` if it came late; 0: `round`."""
    ledger_index: Count | None = None
    """Number of its entry in the federation's ledger, from 0: it is in every later head."""

    def subjects(self) -> tuple[Subject, ...]:
        """Return the contribution, by its statement."""
        name = f"contribution of {self.member_id} for round {self.round}"
        return (Subject(name=name, digest={"sha256": self.contribution}),)
