"""The record of what was left out: with a reason that the member can read and answer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tapestry.checkpoints.manifest import Manifest
from tapestry.errors import RejectedError
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.registry import Registry

REFUSED = "refused"
NO_WEIGHT = "no weight"

_log = logging.getLogger(__name__)


@contextmanager
def recording_refusals(desk: Desk, member_id: str) -> Iterator[None]:
    """Record whatever of a member's contribution is refused while the block runs."""
    try:
        yield
    except RejectedError as error:
        number = desk.state.number
        desk.registry.exclude(number, member_id, kind=REFUSED, reason=str(error), now=desk.clock())
        _log.warning("round %d: refused of %s: %s", number, member_id, error)
        raise


def record_weightless(registry: Registry, manifest: Manifest) -> None:
    """Record the contributions that a checkpoint's round left without weight."""
    parts = () if manifest.made is None else manifest.made.participation
    for part in parts:
        if part.weight == 0 and part.reason:
            registry.exclude(
                manifest.round,
                part.member_id,
                kind=NO_WEIGHT,
                reason=part.reason,
                now=manifest.created_at,
            )
