"""Contributions that wait for a person's decision, as the daemon has them."""

import logging

from tapestry.errors import RejectedError
from tapestry.params.layout import ParameterLayout
from tapestry.wire.egress import EgressLedger
from tapestry_node.approving import decision_on
from tapestry_node.home import NodeHome
from tapestry_node.policy import Policy
from tapestry_node.progress import ProgressFile
from tapestry_node.spool import Spooled, keep_refused

_log = logging.getLogger(__name__)


class Awaiting:
    """Says what may leave, where the institution's policy asks for a person's approval."""

    def __init__(
        self, home: NodeHome, policy: Policy, ledger: EgressLedger, progress: ProgressFile
    ) -> None:
        """Wait for nothing yet.

        Args:
            home: Of the node.
            policy: Whether a person has to say so.
            ledger: Told who has approved what leaves next.
            progress: Shows what waits.
        """
        self._home = home
        self._policy = policy
        self._ledger = ledger
        self._progress = progress
        self._waiting: list[Spooled] = []
        self._said: set[int] = set()
        """Rounds whose contribution was said to wait."""

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def clear(self) -> None:
        """Begin anew: what still waits is found again."""
        self._waiting.clear()
        self._progress.now.waits_for_approval = 0

    def is_approved(self, spooled: Spooled, layout: ParameterLayout) -> bool:
        """Whether a contribution may leave now, as far as a person has to say so.

        Raises:
            RejectedError: The person has said no; the contribution is gone.
        """
        if self._policy.approval == "automatic":
            return True
        number = spooled.contribution.round
        decision = decision_on(self._home, spooled)
        if decision is None:
            if number not in self._said:
                self._said.add(number)
                _log.info("round %d: waits for `tapestry node approve`", number)
            self._progress.now.waits_for_approval = number
            self._progress.write(
                f"the contribution to round {number} waits for a person's approval"
            )
            self._waiting.append(spooled)
            return False
        if not decision.is_approved:
            keep_refused(spooled, self._home, layout)
            raise RejectedError(
                f"{decision.by} refused to send it: {decision.reason or 'no reason'}"
            )
        self._ledger.allowed_by = f"{self._policy.digest()} approved by {decision.by}"
        return True

    def has_decision(self) -> bool:
        """Whether a person has decided about something that waits."""
        return any(decision_on(self._home, spooled) is not None for spooled in self._waiting)
