"""Virtual time and a network without wires: one seed decides everything that happens.

Whatever can happen is an action at a time: calls on their way, answers, timers, crashes, repairs.
Nothing runs beside anything else, so a seed gives the same history again.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tapestry.errors import TapestryError, UnavailableError

START = 1_760_000_000.0
_TIMEOUT_SECONDS = 20.0

T = TypeVar("T")


class World:
    """What happens next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)  # noqa: S311 - nothing is secret here
        self.now = START
        """Unix seconds that pass one a second, whatever anybody's clock says."""
        self._calendar_is_ahead = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    def calendar(self) -> float:
        """What the coordinator's machine takes for the date."""
        return self.now + self._calendar_is_ahead

    def set_calendar(self, *, ahead_seconds: float) -> None:
        """Let the calendar jump to where it is wrong by that much."""
        self._calendar_is_ahead = ahead_seconds

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let `action` happen `seconds` from now; of two at one time the older goes first."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, action))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def between(self, least: float, most: float) -> float:
        return self.random.uniform(least, most)

    def run(self, *, until: Callable[[], bool], limit: float) -> None:
        """Let things happen until a condition holds, or until a time."""
        while self._queue and not until():
            if self._queue[0][0] > limit:
                self.now = limit
                return
            self.now, _count, action = heapq.heappop(self._queue)
            action()


@dataclass
class Faults:
    """How often what goes wrong; all probabilities are of one event."""

    drop: float = 0.0
    """Of a request or an answer on its way."""
    duplicate: float = 0.0
    """Of a request that arrives twice, at two times."""
    slow: float = 0.0
    """Of a message that takes seconds, and is overtaken."""
    disconnect: float = 0.0
    """Of a stream, whenever something is sent on it."""
    crash: float = 0.0
    """Of the coordinator's process, at every named moment."""
    database: float = 0.0
    """Of a transaction that the database does not take."""
    disk: float = 0.0
    """Of a contribution's bytes that the disk does not take."""

    def end(self) -> None:
        """From now on nothing goes wrong."""
        for name in self.__dataclass_fields__:
            setattr(self, name, 0.0)


class Network:
    """Calls that are lost, late, or heard twice."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world, self._faults = world, faults

    def delay(self) -> float:
        if self._world.chance(self._faults.slow):
            return self._world.between(1.0, 30.0)
        return self._world.between(0.001, 0.2)

    def call(
        self,
        perform: Callable[[], T],
        answered: Callable[[T], None],
        failed: Callable[[TapestryError], None],
    ) -> None:
        """Send a request; one of `answered` and `failed` follows, whatever was performed."""
        world, faults = self._world, self._faults
        if world.chance(faults.drop):
            world.after(_TIMEOUT_SECONDS, lambda: failed(UnavailableError("no answer in time")))
            return

        def arrive() -> None:
            try:
                result = perform()
            except TapestryError as error:
                refusal = error
                world.after(self.delay(), lambda: failed(refusal))
                return
            if world.chance(faults.drop):
                world.after(_TIMEOUT_SECONDS, lambda: failed(UnavailableError("answer was lost")))
            else:
                world.after(self.delay(), lambda: answered(result))

        def arrive_again() -> None:
            try:
                perform()
            except TapestryError:
                return

        world.after(self.delay(), arrive)
        if world.chance(faults.duplicate):
            world.after(world.between(0.0, 60.0), arrive_again)
