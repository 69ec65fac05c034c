"""The record of what was left out: with a reason that the member can read and answer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Contribution
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


def require_floor(contribution: Contribution, policy: FederationPolicy) -> None:
    """Refuse a contribution below the federation's quality floor or privacy minimum.

    Raises:
        RejectedError: With the key of the policy.
    """
    tokens, steps = contribution.tokens, contribution.steps
    metrics = contribution.metrics
    first, last = metrics.get("loss_first", 0.0), metrics.get("loss_last", 0.0)
    limit = policy.quality.max_loss_ratio
    checks = [
        (steps >= policy.privacy.min_inner_steps, f"privacy.min_inner_steps: {steps:,} steps"),
        (tokens >= policy.privacy.min_inner_tokens, f"privacy.min_inner_tokens: {tokens:,} tokens"),
        (tokens >= policy.quality.min_tokens, f"quality.min_tokens: {tokens:,} tokens"),
        (
            not limit or first <= 0 or last <= limit * first,
            f"quality.max_loss_ratio: the loss went from {first:.3f} to {last:.3f}",
        ),
    ]
    for holds, message in checks:
        if not holds:
            raise RejectedError(f"below the federation's {message}; see tapestry/policy.json")


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
