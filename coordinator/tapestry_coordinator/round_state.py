"""Where a round stands, and what is to be done when that changes."""

from dataclasses import dataclass, field
from enum import StrEnum

from tapestry_coordinator.events import RoundRules


class Phase(StrEnum):
    """Where a round stands."""

    WAITING = "waiting"
    OPEN = "open"
    AGGREGATING = "aggregating"
    MEASURING = "measuring"
    """Members measure the candidate: the new consensus, before it is published."""
    HELD = "held"
    """Somebody dissented, and the operator decides."""
    RELEASING = "releasing"
    """The candidate, or the consensus as it was, is being published."""
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundState:
    """One round, from waiting for members to being published."""

    number: int
    phase: Phase = Phase.WAITING
    attempt: int = 0
    rules: RoundRules | None = None
    quorum_ready_at: float | None = None
    """While waiting: since when enough members have been here."""
    cohort: tuple[str, ...] = ()
    opened_at: float = 0.0
    deadline: float = 0.0
    quorum_at: float | None = None
    """While open: since when there has been a quorum of contributions."""
    inactive: tuple[str, ...] = ()
    """Those of the cohort that are not waited for."""
    arrived: dict[str, str] = field(default_factory=dict)
    """Contribution digest by member; late ones may be of members outside the cohort."""
    late: dict[str, int] = field(default_factory=dict)
    """By how many rounds, by member, of those that are."""
    tokens: int = 0
    """Of the contributions that arrived."""
    declined: dict[str, str] = field(default_factory=dict)
    """Reason by member."""
    excluded: dict[str, str] = field(default_factory=dict)
    """By member whose contribution is here and counts no more: why."""
    closed_at: float = 0.0
    candidate: str = ""
    """Manifest digest of what members measure, by the no-harm gate."""
    holds: bool = False
    """Whether dissent makes the operator decide; else the consensus stays as it was."""
    measured_until: float = 0.0
    dissent: dict[str, str] = field(default_factory=dict)
    """By member that measured the candidate: what it found, empty if it agrees."""
    left: tuple[str, ...] = ()
    """Who contributed and is not waited for while the others measure."""
    reverted: str = ""
    """Why the candidate is not published; empty if it is."""


class Effect(StrEnum):
    """What the service does after a transition."""

    ANNOUNCE_PLAN = "announce plan"
    AGGREGATE = "aggregate"
    ANNOUNCE_STATE = "announce state"
    RELEASE = "release"
