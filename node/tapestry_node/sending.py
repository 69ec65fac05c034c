"""The way out: spooled contributions to the coordinator, this round's and older ones."""

import logging
from collections.abc import Callable

from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import RejectedError
from tapestry.params.layout import ParameterLayout
from tapestry.wire.egress import EgressLedger
from tapestry.wire.kernel import KernelCount
from tapestry_node.awaiting import Awaiting
from tapestry_node.client import NodeClient
from tapestry_node.consensus import Standing
from tapestry_node.delivering import deliver
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeSettings
from tapestry_node.progress import ProgressFile
from tapestry_node.spool import Spooled, find_unsettled, keep_refused
from tapestry_node.witnessing import Witness

_log = logging.getLogger(__name__)


class Sending:
    """Sends what a person has approved, where the policy asks for one."""

    def __init__(
        self,
        home: NodeHome,
        settings: NodeSettings,
        awaiting: Awaiting,
        *,
        standing: Standing,
        progress: ProgressFile,
        witness: Witness,
        ledger: EgressLedger,
        kernel: KernelCount,
        keys: tuple[bytes, bytes],
        client: Callable[[], NodeClient],
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            home: The node's folder.
            settings: Its operator's.
            awaiting: Knows what is approved.
            standing: Where the node stands.
            progress: Told what is being sent.
            witness: Expects a receipt's entry in the federation's ledger.
            ledger: Of what leaves.
            kernel: Counts beside it.
            keys: Public keys of the node and of the coordinator, raw Ed25519.
            client: Returns the connection that there is.
        """
        self._home = home
        self._settings = settings
        self._awaiting = awaiting
        self._standing = standing
        self._progress = progress
        self._witness = witness
        self._ledger = ledger
        self._kernel = kernel
        self._own_key, self._coordinator_key = keys
        self._client = client

    def settle(self, layout: ParameterLayout, plan: RoundPlan) -> None:
        """Send older contributions that may still be used, or find out what became of them."""
        late = range(max(1, plan.round - self._settings.policy.lateness(plan)), plan.round)
        for spooled in find_unsettled(self._home, layout, key=self._own_key, late=late):
            try:
                self.send(spooled, layout)
            except RejectedError as error:
                _log.warning("round %d: not taken: %s", spooled.contribution.round, error)
                keep_refused(spooled, self._home, layout)

    def send(self, spooled: Spooled, layout: ParameterLayout) -> None:
        """Send a spooled contribution, unless somebody is to approve it first.

        Nothing is deleted before the receipt is durable here.

        Raises:
            RejectedError: It is not taken.
            UnavailableError: Not now.
        """
        if not self._awaiting.is_approved(spooled, layout):
            return
        number, sent = spooled.contribution.round, spooled.size_bytes
        self._progress.write(f"sending the contribution to round {number}")
        receipt = deliver(
            self._client(),
            spooled,
            self._home,
            self._standing,
            coordinator_key=self._coordinator_key,
            on_arrived=lambda done, of: self._progress.count(done, of, "fragments"),
            keep=self._settings.node.keep_last_contribution,
        )
        self._witness.expect(receipt)
        self._ledger.allowed_by = self._settings.policy.digest()
        self._kernel.note()
        used = f", used in round {receipt.used_round}" if receipt.used_round > number else ""
        _log.info("round %d: contributed (%s bytes)%s", number, f"{sent:,}", used)
