"""The guard's end of a trainer whose processes a launcher starts: torchrun, srun, several hosts.

```
trainer/launched/guard.json    written here: how many processes there are to be; touched as long as
                               the guard lives
trainer/launched/newest.json   written by the first of them: which folder beside it is theirs
trainer/launched/ATTEMPT/      what guard and trainer say to each other (`shared_line`)
```
The guard starts nothing and listens nowhere: it waits until processes are there, and waits again
when they have ended.
"""

import json
import re
import secrets
import shutil
from contextlib import suppress

from tapestry.errors import UnavailableError
from tapestry.storage.atomic import write_atomic
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.shared_line import (
    GUARD,
    GUARD_FILE,
    NEWEST_FILE,
    SILENT_SECONDS,
    TRAINER,
    Heart,
    SharedLine,
)

_ATTEMPT = re.compile("[0-9a-f]{16}")


class Launching:
    """What a launcher has started for this guard, one after the other."""

    def __init__(
        self, home: NodeHome, settings: NodeTable, *, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        """Say that a guard is here; one of an earlier process is over.

        Args:
            home: Of the node, in a folder that all hosts see under this path.
            settings: How many processes there are to be, and of what device.
            silent_seconds: After which processes that say nothing are taken to be gone.
        """
        self._home = home
        self._processes = settings.processes
        self._silent = silent_seconds
        self._over: set[str] = set()
        self._attempt = ""
        self._line: SharedLine | None = None
        shutil.rmtree(home.launched, ignore_errors=True)
        home.launched.mkdir(mode=0o700)
        table = {
            "home": str(home.folder),
            "session": secrets.token_hex(8),
            "processes": settings.processes,
            "device": settings.device,
        }
        write_atomic(home.launched / GUARD_FILE, json.dumps(table) + "\n")
        self._heart = Heart(lambda: home.launched / GUARD_FILE)

    def line(self) -> SharedLine:
        """Return the line to the processes that are here.

        Raises:
            UnavailableError: There are none yet.
        """
        if self._line is None:
            newest = self._newest()
            if newest in ("", *self._over):
                raise UnavailableError(
                    f"the trainer's {self._processes} process(es) are not there: have a launcher "
                    f"start `tapestry node trainer {self._home.folder}`"
                )
            self._attempt = newest
            self._line = SharedLine(
                self._home.launched / newest,
                own=GUARD,
                other=TRAINER,
                is_over=lambda: self._newest() != newest,
                silent_seconds=self._silent,
            )
        return self._line

    def _newest(self) -> str:
        """Return the name of the newest attempt's folder; empty if there is none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            name = json.loads((self._home.launched / NEWEST_FILE).read_bytes())["attempt"]
            if _ATTEMPT.fullmatch(name):
                return str(name)
        return ""

    def drop(self) -> None:
        """Do without the processes there are: those that live end, for others to be started."""
        if self._line is not None:
            self._line.close(goes_on=True)
            self._line = None
            self._over.add(self._attempt)

    def end(self) -> None:
        """Let them end: the guard does."""
        self._heart.stop()
        if self._line is not None:
            self._line.close()
            self._line = None
            self._over.add(self._attempt)
        (self._home.launched / GUARD_FILE).unlink(missing_ok=True)
