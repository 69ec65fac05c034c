"""What members measured of the checkpoints, added up as it comes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """Bits per byte of one language: by round, the mean over the members, by bytes."""

    name: str
    members: int
    by_round: Mapping[int, float]


class Measured:
    """One value for each member and round, and the sums of them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._values: dict[tuple[int, str], tuple[str, float, int]] = {}
        self._sums: dict[str, dict[int, list[float]]] = defaultdict(dict)
        """By language and round: bits and bytes."""
        self._means: dict[int, list[float]] = {}
        """By round: bits per byte, added up, and their number."""
        self._newest: dict[str, tuple[int, str]] = {}
        """By member: round and language of the newest."""
        self._worse: dict[tuple[int, str], float] = {}
        """Bits per byte by which a checkpoint was worse than the one before."""
        self.until = -1.0
        """Time of the newest."""

    def take(self, rows: Iterable[Any]) -> bool:
        """Take rows of the evaluations' table; tell whether any was new."""
        changed = False
        for row in rows:
            value = (row.language, row.bits_per_byte, row.held_out_bytes)
            key = (row.round, row.member_id)
            self.until = max(self.until, row.at)
            old = self._values.get(key)
            if old == value:
                continue
            if old is not None:
                self._count(row.round, *old, sign=-1)
            self._count(row.round, *value, sign=1)
            self._values[key] = value
            self._newest[row.member_id] = max(
                self._newest.get(row.member_id, (-1, "")), (row.round, row.language)
            )
            self._compare(row.round, row.member_id)
            self._compare(row.round + 1, row.member_id)
            changed = True
        return changed

    def _count(self, number: int, language: str, bits: float, size: int, *, sign: int) -> None:
        total = self._sums[language].setdefault(number, [0.0, 0.0])
        total[0] += sign * bits * size
        total[1] += sign * size
        mean = self._means.setdefault(number, [0.0, 0.0])
        mean[0] += sign * bits
        mean[1] += sign

    def _compare(self, number: int, member_id: str) -> None:
        before = self._values.get((number - 1, member_id))
        after = self._values.get((number, member_id))
        self._worse.pop((number, member_id), None)
        if before is not None and after is not None and after[1] > before[1]:
            self._worse[number, member_id] = after[1] - before[1]

    def languages(self) -> list[Language]:
        """Return what was measured by language; those with most members first."""
        speakers = Counter(language for _, language in self._newest.values())
        found = [
            Language(
                name=name,
                members=speakers[name],
                by_round={n: sums[n][0] / sums[n][1] for n in sorted(sums) if sums[n][1]},
            )
            for name, sums in self._sums.items()
        ]
        measured = [language for language in found if language.by_round]
        return sorted(measured, key=lambda language: (-language.members, language.name))

    def means(self) -> dict[int, float]:
        """Return bits per byte by round, the mean over all members."""
        return {n: total / number for n, (total, number) in self._means.items() if number}

    def gain(self) -> float | None:
        """Return by how much the newest checkpoint is better than the one before, in bits per byte.

        The mean over those who measured both; None if nobody did.
        """
        newest = max((number for number, _member in self._values), default=0)
        gains = [
            self._values[newest - 1, member][1] - value[1]
            for (number, member), value in self._values.items()
            if number == newest and (newest - 1, member) in self._values
        ]
        return sum(gains) / len(gains) if gains else None

    def worse(self) -> dict[int, list[tuple[str, str, float]]]:
        """Return, by round, whose text it does worse on than the one before: language, how much."""
        found: dict[int, list[tuple[str, str, float]]] = defaultdict(list)
        for (number, member_id), by in sorted(self._worse.items()):
            found[number].append((member_id, self._values[number, member_id][0], by))
        return found

    def spoken(self) -> dict[str, str]:
        """Return what each member called its text last."""
        return {member_id: language for member_id, (_, language) in self._newest.items()}
