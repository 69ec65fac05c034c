"""A history's event log, folded step by step, and what else the checker reads again and again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import TapestryError
from tapestry.identity.envelopes import Envelope, from_json
from tapestry_coordinator.events import Event, event_from_json
from tapestry_coordinator.round_state import RoundState
from tapestry_coordinator.rounds import tick
from tests.simulation.history import History


@dataclass(frozen=True)
class Violation:
    """An invariant that did not hold, and how."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


@dataclass(frozen=True)
class Step:
    """A stored event and what it did."""

    number: int
    at: float
    """By the coordinator's clock."""
    moment: float
    """In seconds that pass."""
    event: Event
    before: RoundState
    after: RoundState
    is_step: bool
    """Whether it changed something, and no later round had begun."""


def steps(history: History) -> Sequence[Step]:
    """Fold the log."""
    key = (history.records.events, tuple(history.moments))
    if not _folded or _folded[0] != key:
        _folded[:] = [key, list(_steps(history))]
    folded: Sequence[Step] = _folded[1]
    return folded


_folded: list[Any] = []
"""The log that was folded last, for all checks of a history."""


def _steps(history: History) -> Iterator[Step]:
    states: dict[int, RoundState] = {}
    newest = 0
    for index, (_id, number, at, kind, body) in enumerate(history.records.events):
        if not isinstance(number, int) or not isinstance(at, float):
            raise TypeError(number, at)
        before = states.get(number, RoundState(number=number))
        event = event_from_json(str(kind), str(body))
        try:
            after, _effects = tick(before, event, now=at)
        except (TapestryError, ValueError):
            after = before
        is_step = after != before and number >= newest
        newest = max(newest, number)
        states[number] = after
        moment = history.moments[index] if index < len(history.moments) else float("inf")
        yield Step(number, at, moment, event, before, after, is_step)


@lru_cache(4096)
def manifest_in(payload: bytes) -> Manifest:
    """Read a manifest that was signed."""
    return Manifest.parsed(payload, what="manifest")


def manifests(history: History) -> dict[int, tuple[Manifest, Envelope]]:
    """Return what was published, by round."""
    return {
        manifest.round: (manifest, envelope)
        for envelope in history.records.lineage
        for manifest in [manifest_in(envelope.payload)]
    }


@lru_cache(4096)
def plan_in(text: str) -> RoundPlan:
    """Read a plan as the database holds it."""
    return RoundPlan.parsed(from_json(text.encode(), what="plan").payload, what="plan")


@lru_cache(1024)
def policy_in(body: str) -> FederationPolicy:
    """Read a policy as the database holds it."""
    return FederationPolicy.model_validate_json(body)
