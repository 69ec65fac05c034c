"""What can happen to a round, and how it is stored."""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRules:
    """How a round opens, waits, and closes; fixed for a round when it opens."""

    quorum: int
    gather_seconds: float
    grace_seconds: float
    deadline_seconds: float
    total: int
    """Rounds to run; 0 means without end."""
    quorum_tokens: int = 0
    """Fewest tokens of the contributions together, beside their number."""
    is_asynchronous: bool = False
    """Whether late contributions alone may close a round before its deadline."""
    buffer: int = 0
    """Of an asynchronous round: arrivals that close it before its deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time went by, or members came and went."""

    ready: tuple[str, ...]
    """Members that are connected."""
    enrolled: int
    """Members that could be and are waited for."""
    rules: RoundRules
    """As configured now; taken up when a round opens."""
    inactive: tuple[str, ...] = ()
    """Those of the connected that are not waited for: they have missed too many rounds."""
    is_paused: bool = False
    """No round opens; one that is open goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A contribution is durable."""

    member_id: str
    digest: str
    tokens: int = 0
    """Seen by its inner steps."""
    staleness: int = 0
    """By how many rounds it is late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declined:
    """A member will not answer this plan."""

    member_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A member of the cohort, or one that contributed, is a member no more."""

    member_id: str
    reason: str
    tokens: int = 0
    """Of its contribution, if that is here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The round's checkpoint is out."""

    manifest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposed:
    """The round's candidate can be fetched and measured."""

    manifest: str
    holds: bool
    until: float
    """Unix seconds until which members may measure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A member has measured the candidate."""

    member_id: str
    dissent: str
    """In words; empty if it agrees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruled:
    """The operator decides about a candidate."""

    is_released: bool
    reason: str


Event = Tick | Arrived | Declined | Left | Published | Proposed | Measured | Ruled

_KINDS: dict[str, type[Event]] = {
    "tick": Tick,
    "arrived": Arrived,
    "declined": Declined,
    "left": Left,
    "published": Published,
    "proposed": Proposed,
    "measured": Measured,
    "ruled": Ruled,
}


def event_to_json(event: Event) -> tuple[str, str]:
    """Return an event's kind and body for storage."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return kind, json.dumps(asdict(event), sort_keys=True)


def event_from_json(kind: str, body: str) -> Event:
    """Return the event that `event_to_json` stored."""
    values: dict[str, Any] = json.loads(body)
    if kind == "tick":
        values["ready"] = tuple(values["ready"])
        values["inactive"] = tuple(values.get("inactive", ()))
        values["rules"] = RoundRules(**values["rules"])
    event: Event = _KINDS[kind](**values)
    return event
