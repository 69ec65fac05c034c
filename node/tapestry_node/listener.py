"""What the coordinator tells, heard in a thread of its own.

What is told is the whole present state each time, so nothing is lost when a line breaks. It comes
over the connection that carries the vectors too: the coordinator's heartbeats tell a slow line from
a dead one.
"""

import logging
import threading
import time
from collections.abc import Callable

from tapestry.errors import TapestryError, UnavailableError
from tapestry_node.client import NodeClient, Told

_log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 3.0
_NOTICE_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Listener:
    """Keeps the newest state that the coordinator told; reconnects by itself."""

    def __init__(self, connected: Callable[[], NodeClient]) -> None:
        """Start listening in a thread of its own, each time on the connection that there is."""
        self._connected = connected
        self._changed = threading.Condition()
        self._told: Told | None = None
        self._version = 0
        self._streams = 0
        self._is_told = False
        self._failure: TapestryError | None = None
        self._stopped = threading.Event()
        self._is_renewing = threading.Event()
        self._client: NodeClient | None = None
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._thread.start()

    @property
    def newest(self) -> Told | None:
        """The newest state, if any came yet."""
        with self._changed:
            return self._told

    @property
    def streams(self) -> int:
        """How many times the coordinator has begun to tell."""
        with self._changed:
            return self._streams

    @property
    def is_told(self) -> bool:
        """Whether the coordinator is telling now."""
        with self._changed:
            return self._is_told

    def wait_for_stream(self, *, after: int, timeout_seconds: float) -> bool:
        """Wait until the coordinator has begun to tell once more than `after` times; say if so.

        Also if listening has failed for good, which `wait` then raises.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._streams > after or self._failure is not None, timeout_seconds
            )

    def wait(self, *, after: int, timeout_seconds: float) -> tuple[int, Told | None]:
        """Wait for something newer than version `after`; return version and state.

        Raises:
            UntrustedError: The other side is not of this federation, or does not take us.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._version > after or self._failure is not None, timeout_seconds
            )
            if self._failure is not None:
                raise self._failure
            return self._version, self._told

    def stop(self) -> None:
        """Hang up, and wait until the thread has ended."""
        self._stopped.set()
        self._hang_up()
        self._thread.join(_STOP_SECONDS)

    def reconnect(self) -> None:
        """Hang up, and listen on the connection that has taken this one's place."""
        self._is_renewing.set()
        self._hang_up()

    def _hang_up(self) -> None:
        client = self._client
        if client is not None:
            client.close()

    def _listen(self) -> None:
        backoff, last_notice = FIRST_BACKOFF_SECONDS, float("-inf")
        while not self._stopped.is_set():
            self._is_renewing.clear()  # this connection has the newest certificate
            try:
                self._client = client = self._connected()
                if self._stopped.is_set():
                    return
                for told in client.watch():
                    if backoff > FIRST_BACKOFF_SECONDS:
                        _log.info("connected to %s", client.address)
                    backoff, last_notice = FIRST_BACKOFF_SECONDS, float("-inf")
                    self._tell(told)
            except UnavailableError as error:
                is_ours = self._stopped.is_set() or self._is_renewing.is_set()
                if not is_ours and time.monotonic() - last_notice > _NOTICE_SECONDS:
                    _log.warning("%s; trying again until it does", error)
                    last_notice = time.monotonic()
            except TapestryError as error:
                if self._is_renewing.is_set():
                    continue
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            finally:
                with self._changed:
                    self._is_told = False
            self._stopped.wait(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)

    def _tell(self, told: Told) -> None:
        with self._changed:
            self._streams += not self._is_told
            self._is_told = True
            if told != self._told:
                self._told = told
                self._version += 1
            self._changed.notify_all()
