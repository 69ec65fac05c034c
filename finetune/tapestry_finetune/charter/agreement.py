"""How far people agree beyond chance: Krippendorff's alpha for choices without an order."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable


def krippendorff_alpha(choices: Iterable[tuple[Hashable, Hashable, Hashable]]) -> float | None:
    """Return alpha: 1 for full agreement, 0 for chance, below 0 for worse; None: it says nothing.

    Only what at least two people judged counts, with any number missing. Where everybody always
    chose the same thing, there is nothing that chance could be told from.

    Args:
        choices: Who, about what, chose what; one choice of a person about a thing.
    """
    units: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for _who, about, chosen in choices:
        units[about][chosen] += 1
    paired = [counts for counts in units.values() if counts.total() >= 2]
    totals: Counter[Hashable] = Counter()
    for counts in paired:
        totals.update(counts)
    values = totals.total()
    by_chance = values * values - sum(count * count for count in totals.values())
    if by_chance == 0:
        return None
    disagreeing = 0.0
    for counts in paired:
        size = counts.total()
        disagreeing += (size * size - sum(n * n for n in counts.values())) / (size - 1)
    return 1 - (values - 1) * disagreeing / by_chance
