"""The no-harm gate: is a new consensus worse for somebody's own text?

Members measure on held-out text that stays with them; what they say is compared with what they
said of the checkpoint before. A federation whose policy publishes at once has the dissent on
record; one that holds or reverts asks first (`tapestry_coordinator.rounds`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tapestry_coordinator.testimony import StoredEvaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Dissent:
    """A member for whose text a checkpoint is worse than the one before."""

    round: int
    member_id: str
    language: str
    before: float
    """Bits per byte of the parent."""
    after: float

    @property
    def words(self) -> str:
        """What the member found."""
        return (
            f"{self.before:.4f} to {self.after:.4f} bits per byte on {self.language or 'its text'}"
        )


def dissents(
    evaluations: Sequence[StoredEvaluation], *, round_number: int, max_worse: float
) -> list[Dissent]:
    """Return who found checkpoint `round_number` worse than its parent, by member.

    Who did not measure both agrees.

    Args:
        evaluations: Of at least the two checkpoints.
        round_number: Of the newer one.
        max_worse: Bits per byte by which it may be worse.
    """
    before = {e.member_id: e.bits_per_byte for e in evaluations if e.round == round_number - 1}
    return [
        Dissent(
            round=round_number,
            member_id=e.member_id,
            language=e.language,
            before=before[e.member_id],
            after=e.bits_per_byte,
        )
        for e in sorted(evaluations, key=lambda e: e.member_id)
        if e.round == round_number
        and e.bits_per_byte > before.get(e.member_id, float("inf")) + max_worse
    ]
