"""Everything that the page shows, made once for all who look at it."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from tapestry.errors import TapestryError
from tapestry.web.markup import Markup, table
from tapestry.web.parts import hero
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.live import read_live
from tapestry_coordinator.web import charts, sections
from tapestry_coordinator.web.history import History, Note, Totals
from tapestry_coordinator.web.story import FRESH_SECONDS, Story, story_of
from tapestry_coordinator.web.verifying import Verifier

_log = logging.getLogger(__name__)
_HISTORY_SECONDS = 2.0
_REDRAW_SECONDS = 2.0
"""While the history is read for the first time."""


class Board:
    """History, live state and verification, and what follows from them."""

    def __init__(
        self, home: CoordinatorHome, engine: Engine, *, clock: Callable[[], float]
    ) -> None:
        """Of the coordinator in `home`, whose registry `engine` reads."""
        self.home = home
        self.clock = clock
        self.genesis = home.load_genesis()
        self.history = History(engine)
        self.verifier = Verifier(home, lambda: self.history.rounds, clock=clock)
        self.live: Mapping[str, Any] | None = None
        self.database_error = ""
        self.parts: dict[str, Markup] = {}
        """Sections by name."""
        self.options: dict[str, dict[str, Any]] = {}
        """Charts by name."""
        self.charts_version = -1
        self._bits: dict[int, float] = {}
        self._notes: list[Note] = []
        self._totals = Totals()
        self._spoken: dict[str, str] = {}
        self._turn = threading.Lock()
        self._reads = self._rendered = 0
        self._read_at = -_HISTORY_SECONDS
        self._render_history()

    @property
    def federation(self) -> str:
        """Its name."""
        return self.genesis.origin.federation

    @property
    def identity(self) -> str:
        """Its genesis digest."""
        return self.genesis.genesis_digest

    def refresh(self) -> bool:
        """Look again; tell whether more of the history is to be read at once."""
        with self._turn:
            self.live = read_live(self.home.live)
            more = self._read_history()
            is_due = not more or self.clock() - self._drawn_at > _REDRAW_SECONDS
            if self.charts_version != self.history.version and is_due:
                self._render_history()
            self._reads += 1
            return more

    def _read_history(self) -> bool:
        now = self.clock()
        if self.history.is_complete and 0 <= now - self._read_at < _HISTORY_SECONDS:
            return False
        self._read_at = now
        try:
            more = self.history.refresh()
        except TapestryError as error:
            if not self.database_error:
                _log.error("%s", error)
            self.database_error = str(error)
            return False
        self.database_error = ""
        return more

    @property
    def story(self) -> Story:
        """What state the federation is in."""
        return story_of(
            self.live,
            members=sum(member.status == "active" for member in self.history.members),
            database_error=self.database_error,
            now=self.clock(),
        )

    def current(self) -> dict[str, Markup]:
        """Return the sections by name, as of the last look."""
        if self._rendered != self._reads:
            self._rendered = self._reads
            self._render()
        return self.parts

    def _render(self) -> None:
        now, live, story = self.clock(), self.live, self.story
        if live is not None and now - live["time"] > FRESH_SECONDS:
            live = None  # nobody knows what they do
        known = self.history.members
        self.parts |= {
            "hero": hero(
                story.tone,
                story.title,
                story.detail,
                sections.tiles(live, self.history, self._bits),
            ),
            "live": sections.live_members(live, known, now),
            "members": sections.members(known, self._totals, self._spoken, now=now),
            "record": sections.record(
                self._notes, (live or {}).get("declined", {}), (live or {}).get("round")
            ),
        }

    def _render_history(self) -> None:
        version, self._drawn_at = self.history.version, self.clock()
        found = self.history.languages()
        self._bits = self.history.means()
        self._notes = self.history.notes()
        self._totals = self.history.totals()
        self._spoken = self.history.spoken()
        self.parts["languages"] = sections.languages(found)
        self.options = {
            "quality": charts.quality(found),
            "influence": charts.influence(self.history.rounds, self._totals.weights),
            "loss": charts.loss(self.history.rounds),
        }
        self.charts_version = version

    def checkpoints(self, page: int) -> tuple[Markup, bool]:
        """Return one page of the checkpoints, newest first, and whether older ones follow."""
        rounds = self.history.rounds[::-1]
        first = page * sections.CHECKPOINTS_SHOWN
        rows = [
            sections.checkpoint_row(
                summary,
                bits=self._bits.get(summary.number),
                outcome=self.verifier.outcome(summary.digest),
                is_kept=self.home.checkpoint(summary.number).is_dir(),
                now=self.clock(),
            )
            for summary in rounds[first : first + sections.CHECKPOINTS_SHOWN]
        ]
        shown = table("Published checkpoints", sections.CHECKPOINT_COLUMNS, rows, kind="chain")
        return shown, first + sections.CHECKPOINTS_SHOWN < len(rounds)
