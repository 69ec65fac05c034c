"""The time by which rounds open and close: seconds that pass, begun at the calendar's date."""

from collections.abc import Callable


class SteadyClock:
    """Unix seconds that only go forward, one a second.

    A calendar that is set right, or wrong, while a coordinator runs would hold its rounds open for
    hours or close them at once. So it is read once, at the start; never before the last event that
    was recorded, which may have been under a calendar that was ahead.
    """

    def __init__(
        self,
        calendar: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        not_before: float = 0.0,
    ) -> None:
        """Begin at the calendar's Unix seconds, or at `not_before` if that is later."""
        self._monotonic = monotonic
        self._difference = max(calendar(), not_before) - monotonic()

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self._difference + self._monotonic()
