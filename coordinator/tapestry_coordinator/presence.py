"""Which members are connected now."""

from collections import Counter
from collections.abc import Iterable


class Presence:
    """Connections by member; whoever asks or tells holds the desk's lock."""

    def __init__(self) -> None:
        self._here: Counter[str] = Counter()
        self._connections: Counter[str] = Counter()
        """How many times each member has connected."""
        self.returned: set[str] = set()
        """Who connected anew since a round opened: the next one waits for them, whatever they
        have missed."""

    def come(self, member_id: str) -> int:
        """Count a new connection of a member; return its number."""
        if self._here[member_id] == 0:
            self.returned.add(member_id)
        self._here[member_id] += 1
        self._connections[member_id] += 1
        return self._connections[member_id]

    def go(self, member_id: str) -> None:
        """Count a connection as ended."""
        self._here[member_id] -= 1

    def newest(self, member_id: str) -> int:
        """Return the number of a member's newest connection, 0 before the first."""
        return self._connections[member_id]

    def is_here(self, member_id: str) -> bool:
        """Whether a member is connected."""
        return self._here[member_id] > 0

    def count(self, members: Iterable[str]) -> int:
        """Return how many of `members` are connected."""
        return sum(map(self.is_here, members))

    def all(self) -> list[str]:
        """Return who is connected, by id."""
        return sorted(member for member, count in self._here.items() if count > 0)
