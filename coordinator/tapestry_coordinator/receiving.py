"""A contribution on its way into the database: its receipt names its place in the ledger."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan, payload_digest
from tapestry.errors import UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.ledger.entries import Entry
from tapestry_coordinator.ledgering import entry_of_contribution
from tapestry_coordinator.roster import Member


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredContribution:
    """A committed contribution, as it was signed."""

    round: int
    member_id: str
    digest: str
    envelope: Envelope
    receipt: Envelope
    norm: float
    signing_key: bytes
    """Raw Ed25519 public key of the member when it committed."""
    staleness: int = 0
    """By how many rounds it was late."""

    @property
    def declared(self) -> Contribution:
        """What its member signed."""
        what = f"contribution of {self.member_id}"
        return Contribution.parsed(self.envelope.payload, what=what)

    @property
    def used_round(self) -> int:
        """The round whose update it is a part of."""
        return self.round + self.staleness


class Receiving:
    """A contribution that is about to be recorded: its receipt names its place in the ledger."""

    def __init__(self, entry: Entry, made: Callable[[int], StoredContribution]) -> None:
        """Have `made` called with the number of the entry once that is known."""
        self.entry = entry
        self._made = made
        self._stored: StoredContribution | None = None

    def receive(self, index: int) -> StoredContribution:
        """Return what is stored, its receipt signed."""
        self._stored = self._made(index)
        return self._stored

    @property
    def stored(self) -> StoredContribution:
        """What was recorded.

        Raises:
            UnavailableError: Nothing was.
        """
        if self._stored is None:
            raise UnavailableError("the round did not take the contribution: send it again")
        return self._stored


def receiving(
    plan: RoundPlan,
    contribution: Contribution,
    envelope: Envelope,
    *,
    member: Member,
    norm: float,
    staleness: int,
    now: float,
    key: Ed25519PrivateKey,
) -> Receiving:
    """Return what is to be recorded of a contribution.

    Args:
        plan: That it answers.
        contribution: What it says.
        envelope: As its member has signed it.
        member: Who has.
        norm: Of what it decodes to.
        staleness: By how many rounds it is late.
        now: Unix seconds at which it is accepted.
        key: With which its receipt is signed.
    """
    digest, member_id = payload_digest(envelope), member.member_id

    def received(index: int) -> StoredContribution:
        receipt = Receipt(
            genesis=plan.genesis,
            round=contribution.round,
            member_id=member_id,
            contribution=digest,
            root=contribution.root,
            accepted_at=now,
            used_round=contribution.round + staleness,
            ledger_index=index,
        ).signed(key)
        return StoredContribution(
            round=contribution.round,
            member_id=member_id,
            digest=digest,
            envelope=envelope,
            receipt=receipt,
            norm=norm,
            signing_key=bytes.fromhex(member.signing_key),
            staleness=staleness,
        )

    return Receiving(entry_of_contribution(contribution.round, member_id, digest), received)
