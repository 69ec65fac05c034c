"""A modelled disk: contributions and checkpoints in a dictionary, with the store's promises."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tapestry.errors import RejectedError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry_coordinator import failpoints

_Key = tuple[int, str]


@dataclass
class ModelDisk:
    """Contributions and checkpoints in a dictionary."""

    uploads: dict[_Key, tuple[tuple[bytes, ...], set[int]]] = field(default_factory=dict)
    whole: dict[_Key, tuple[bytes, ...]] = field(default_factory=dict)
    published: dict[int, Envelope] = field(default_factory=dict)
    candidates: dict[int, Envelope] = field(default_factory=dict)
    secured: set[_Key] = field(default_factory=set)
    """What is in the store of blobs too."""

    def leave_behind(self, recorded: int) -> None:
        """Let another machine go on, which has what is in database and store, and nothing else."""
        self.uploads.clear()
        self.candidates.clear()
        self.whole = {key: self.whole[key] for key in self.whole if key in self.secured}
        self.published = {n: self.published[n] for n in self.published if n <= recorded}


class ModelStore:
    """The store's promises, kept in memory."""

    def __init__(self, disk: ModelDisk, accepts: Callable[[], bool]) -> None:
        self._disk, self._accepts = disk, accepts
        self._open: set[_Key] = set()

    @contextmanager
    def turn(self, _member_id: str) -> Iterator[None]:
        yield

    def open(
        self,
        number: int,
        member_id: str,
        *,
        codec: str,  # noqa: ARG002 - as the real one
        digests: tuple[bytes, ...],
        max_element: float,  # noqa: ARG002 - as the real one
    ) -> list[bool]:
        key = (number, member_id)
        if self._disk.whole.get(key) == digests and key not in self._open:
            return [False] * len(digests)
        known, have = self._disk.uploads.get(key, ((), set()))
        if known != digests:
            have = set()
        self._disk.uploads[key] = (digests, have)
        self._open.add(key)
        return [index not in have for index in range(len(digests))]

    def put(self, number: int, member_id: str, *, index: int, data: bytes) -> None:
        key = (number, member_id)
        if key not in self._open:
            if fragment_digest(data) in self._disk.whole.get(key, ()):
                return
            raise RejectedError("no upload is open: announce the contribution's digests first")
        digests, have = self._disk.uploads[key]
        if fragment_digest(data) != digests[index]:
            raise RejectedError(f"fragment {index}: its bytes do not have the announced digest")
        self._require_space()
        have.add(index)
        failpoints.reach("fragment-stored")

    def take(self, number: int, member_id: str, *, index: int, pieces: Iterator[bytes]) -> int:
        data = b"".join(pieces)
        self.put(number, member_id, index=index, data=data)
        return len(data)

    def finish(self, number: int, member_id: str) -> tuple[bytes, float]:
        key = (number, member_id)
        digests, have = self._disk.uploads.get(key, ((), set()))
        if key not in self._open or not digests or len(have) < len(digests):
            raise RejectedError("fragments are missing: send them before committing")
        failpoints.reach("contribution-received")
        self._require_space()
        self._disk.whole[key] = digests
        del self._disk.uploads[key]
        self._open.remove(key)
        return fragments_root(list(digests)), 1.0

    def finished(self, number: int, member_id: str) -> tuple[bytes, float] | None:
        key = (number, member_id)
        if key in self._open or key not in self._disk.whole:
            return None
        return fragments_root(list(self._disk.whole[key])), 1.0

    def secure(self, number: int, member_id: str, *, root: str) -> None:
        """Put it where another coordinator would find it."""
        assert fragments_root(list(self._disk.whole[number, member_id])).hex() == root
        self._disk.secured.add((number, member_id))

    def close(self) -> None:
        self._open.clear()

    def _require_space(self) -> None:
        if not self._accepts():
            raise UnavailableError("the coordinator cannot store this contribution now: disk full")
