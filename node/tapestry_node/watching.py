"""What happens after each inner step: it is shown and told, and training ends if it is in vain."""

import logging
import time
from typing import Protocol

from tapestry.checkpoints.statements import RoundPlan
from tapestry.identity.envelopes import Envelope
from tapestry.objectives.reports import StepReport
from tapestry_node.listener import Listener

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 5.0
_LOG_SECONDS = 15.0


class Watched(Protocol):
    """Whoever has the training done."""

    def on_step(self, plan: RoundPlan, report: StepReport, *, seconds: float) -> None:
        """Show a step's figures."""
        ...

    def report(self, plan: RoundPlan) -> None:
        """Tell the coordinator how far this node is."""
        ...

    def staleness(self, plan: RoundPlan, newest: Envelope) -> int:
        """Return by how many rounds an answer to `plan` is late once `newest` is out."""
        ...

    def is_stopping(self) -> bool:
        """Whether the process is about to end."""
        ...


class StepWatch:
    """Called after each inner step: shows, reports, and says when to stop."""

    def __init__(
        self,
        daemon: Watched,
        plan: RoundPlan,
        listener: Listener,
        began: float,
        max_staleness: int,
    ) -> None:
        """Begin to watch.

        Args:
            daemon: That has the training done.
            plan: That is trained.
            listener: Hears what the coordinator tells meanwhile.
            began: Monotonic seconds.
            max_staleness: By how many rounds the answer may be late.
        """
        self._daemon = daemon
        self._max_staleness = max_staleness
        self._newest: Envelope | None = None
        self._plan = plan
        self._listener = listener
        self._began = began
        self._reported = began
        self._logged = began

    def __call__(self, report: StepReport) -> bool:
        """Show a step; return whether to go on."""
        now = time.monotonic()
        self._daemon.on_step(self._plan, report, seconds=now - self._began)
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._daemon.report(self._plan)
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            _log.info(
                "round %d: step %d of %d, loss %.3f",
                self._plan.round,
                report.step,
                self._plan.inner.steps,
                report.loss,
            )
        return not self._daemon.is_stopping() and not self._is_over()

    def _is_over(self) -> bool:
        """Whether the coordinator has published a checkpoint that makes this answer too late."""
        told = self._listener.newest
        if told is None or told.manifest == self._newest:
            return False
        self._newest = told.manifest
        staleness = self._daemon.staleness(self._plan, told.manifest)
        if staleness <= 0:
            return False
        if staleness <= self._max_staleness:
            _log.info(
                "round %d closed before this node had finished; it goes on, for round %d",
                self._plan.round,
                self._plan.round + staleness,
            )
            return False
        _log.warning("round %d closed before this node had finished", self._plan.round)
        return True
