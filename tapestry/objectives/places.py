"""Where a process stands among those that train one model together."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Of one process; alone unless it says otherwise."""

    rank: int = 0
    """From 0, over all hosts."""
    size: int = 1
    """How many processes there are."""
    local_rank: int = 0
    """The same on its own host."""
    local_size: int = 1

    @classmethod
    def of(cls, rank: int, size: int) -> "Place":
        """Return the place of a process whose fellows are all on this host."""
        return cls(rank=rank, size=size, local_rank=rank, local_size=size)
