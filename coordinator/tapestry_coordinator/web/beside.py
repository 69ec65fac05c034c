"""Starts the page beside the coordinator, and again if it ends; it never outlives the coordinator.

A process of its own: whatever it does, it can neither slow nor crash the coordinator.
"""

import logging
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from tapestry_coordinator.home import CoordinatorHome

_log = logging.getLogger(__name__)
_FIRST_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_STOP_SECONDS = 5.0


class PageBeside:
    """The page's process while the block runs."""

    def __init__(self, home: CoordinatorHome, *, json_log: bool) -> None:
        """Of the coordinator in `home`."""
        flags = ["--json-log"] if json_log else []
        for key, url in home.storage:
            flags += ["--database", url] if key == "database" else []
        self._command = [
            sys.executable, "-m", "tapestry.cli.main", "coordinator", "page", str(home.folder),
            "--with-parent", *flags,
        ]  # fmt: skip
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="page", daemon=True)

    def __enter__(self) -> Self:
        """Start it."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()

    def _keep(self) -> None:
        wait = _FIRST_WAIT_SECONDS
        while not self._stopping.is_set():
            try:
                self._run()
            except OSError as error:
                _log.error("the page cannot be started: %s", error)
            if not self._stopping.is_set():
                _log.warning("the page ended; started again in %.0f s", wait)
            self._stopping.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _run(self) -> None:
        """Run the page until it ends or is to end."""
        # Its standard input ends when this process does, however it does.
        with subprocess.Popen(
            self._command, stdin=subprocess.PIPE, start_new_session=True
        ) as process:
            while not self._stopping.is_set() and process.poll() is None:
                self._stopping.wait(_LOOK_SECONDS)
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
