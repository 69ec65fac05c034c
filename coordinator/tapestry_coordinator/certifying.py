"""The coordinator's own certificate: short-lived like its members', and renewed like theirs."""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from tapestry.identity.certificates import Authority, issue_server_certificate

_log = logging.getLogger(__name__)

LIFETIME = timedelta(days=90)


class OwnCertificate:
    """What the coordinator shows at each handshake; a fresh one from half of its life on."""

    def __init__(
        self,
        authority: Authority,
        public_key: EllipticCurvePublicKey,
        *,
        federation: str,
        hosts: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        """Issue the first one.

        Args:
            authority: The federation's root of trust.
            public_key: Of the coordinator's TLS key.
            federation: Its name.
            hosts: Names that members may dial.
            clock: Unix seconds, as on a calendar.
        """
        self._authority = authority
        self._public_key = public_key
        self._federation = federation
        self._hosts = sorted(hosts)
        self._clock = clock
        self._lock = threading.Lock()
        self._issued = self._now()
        self._pem = self._issue(self._issued)

    def pem(self) -> bytes:
        """Return the present certificate."""
        with self._lock:
            now = self._now()
            if not timedelta() <= now - self._issued < LIFETIME / 2:
                self._pem, self._issued = self._issue(now), now
                _log.info("the coordinator's own certificate is renewed")
            return self._pem

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _issue(self, now: datetime) -> bytes:
        return issue_server_certificate(
            self._authority,
            self._public_key,
            federation=self._federation,
            hosts=self._hosts,
            now=now,
            lifetime_days=LIFETIME.days,
        )
