"""Where a federation stands, read from its folder; also while the coordinator runs."""

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.live import read_live
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import ACTIVE, Member
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.rounds import folded

INACTIVE = "inactive"


def status_of(home: CoordinatorHome) -> dict[str, Any]:
    """Return the round, the newest checkpoint, and what members measured of it."""
    with closing(Registry(database_url(home))) as registry:
        return status_table(home, registry)


def status_table(home: CoordinatorHome, registry: Registry) -> dict[str, Any]:
    """Return the same from a registry that is open."""
    newest = registry.newest_round() or 0
    state = folded(newest + 1, registry.round_events(newest + 1))
    measured = registry.evaluations(since=newest)
    genesis, total = home.load_genesis(), home.load_settings().rounds.total
    phase = Phase.FINISHED if 0 < total <= newest else state.phase
    return {
        "federation": genesis.origin.federation,
        "identity": genesis.genesis_digest,
        "round": state.number,
        "total": total,
        "phase": phase.value,
        "attempt": state.attempt,
        "quorum": 0 if state.rules is None else state.rules.quorum,
        "cohort": list(state.cohort),
        "inactive": list(state.inactive),
        "arrived": sorted(state.arrived),
        "late": state.late,
        "declined": state.declined,
        "excluded": state.excluded,
        "deadline": readable_time(state.deadline) if state.deadline else None,
        "candidate": state.candidate,
        "measured": state.dissent,
        "newest_checkpoint": newest,
        "checkpoint_folder": str(home.checkpoint(newest)),
        "ends": (read_live(home.live) or {}).get("ends", {}),
        "bits_per_byte": {e.member_id: e.bits_per_byte for e in measured},
    }


def activity_of(member: Member, *, inactive_after: int) -> str:
    """Return a member's status as people see it: rounds do not wait for an inactive one.

    Args:
        member: Of the registry.
        inactive_after: Rounds missed in a row, by the federation's policy; 0: never.
    """
    if member.status == ACTIVE and 0 < inactive_after <= member.missed_rounds:
        return INACTIVE
    return member.status


def readable_time(seconds: float) -> str:
    """Return Unix seconds as UTC for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
