"""The daemon's one connection to the coordinator, and the certificate that it stands on."""

import logging
from datetime import UTC, datetime

from tapestry.errors import UntrustedError
from tapestry.identity.membership import IdentityFolder, Membership
from tapestry.wire.egress import EgressLedger
from tapestry_node.client import NodeClient
from tapestry_node.listener import Listener

_log = logging.getLogger(__name__)


class Connection:
    """Over which everything goes; another one takes its place when the certificate is renewed."""

    def __init__(
        self, membership: Membership, identity: IdentityFolder, ledger: EgressLedger
    ) -> None:
        """Make it; nothing is sent yet.

        Raises:
            UntrustedError: The certificate is not valid now.
        """
        self._membership = membership
        self._identity = identity
        self._ledger = ledger
        self.client = self._connect()

    def _connect(self) -> NodeClient:
        self._require_valid_certificate()
        return NodeClient(self._membership, self._identity, self._ledger)

    def valid(self) -> NodeClient:
        """Return the connection there is, if the coordinator would not hang up on it.

        Raises:
            UntrustedError: The certificate is not valid now.
        """
        self._require_valid_certificate()
        return self.client

    def _require_valid_certificate(self) -> None:
        """Refuse a certificate that is not valid now: the coordinator would hang up in silence."""
        begin, end = self._identity.validity()
        if not begin <= datetime.now(UTC) < end:
            raise UntrustedError(
                f"this node's certificate is valid from {begin:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M} UTC: set the clock, or ask the coordinator's operator for a "
                "new invitation"
            )

    def renew_if_due(self, listener: Listener) -> None:
        """Renew the member certificate at half of its life."""
        begin, end = self._identity.validity()
        if datetime.now(UTC) > begin + (end - begin) / 2:
            old = self.client
            old.renew()
            self.client = self._connect()
            listener.reconnect()
            old.close()
            _log.info("member certificate renewed")
