"""Plans that this node does not answer, and telling the coordinator why, once."""

import contextlib
import logging
from collections.abc import Callable

from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import RejectedError
from tapestry_node.client import NodeClient

_log = logging.getLogger(__name__)


class Declining:
    """Remembers what was declined, as long as the process lives."""

    def __init__(self, client: Callable[[], NodeClient]) -> None:
        """Begin with nothing; `client` returns the connection that there is."""
        self._client = client
        self._reasons: dict[tuple[int, int], str] = {}
        """By round and attempt; empty once the coordinator knows."""

    def is_declined(self, plan: RoundPlan) -> bool:
        """Whether a plan is not answered."""
        return (plan.round, plan.attempt) in self._reasons

    def decline(self, plan: RoundPlan, reason: str) -> None:
        """Answer a plan with a reason instead.

        Raises:
            UnavailableError: The line is down: `tell` it when it is back.
        """
        _log.warning("round %d: %s", plan.round, reason)
        self._reasons[plan.round, plan.attempt] = reason
        self.tell(plan)

    def tell(self, plan: RoundPlan) -> None:
        """Tell the coordinator why a plan is not answered, unless it knows.

        Raises:
            UnavailableError: The line is down.
        """
        reason = self._reasons[plan.round, plan.attempt]
        if reason:
            with contextlib.suppress(RejectedError):  # the round is over
                self._client().decline(round_number=plan.round, reason=reason)
            self._reasons[plan.round, plan.attempt] = ""
