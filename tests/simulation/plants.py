"""What outlives a coordinator's process: its database and its disk, modelled or real.

The modelled disk is a dictionary, and a modelled checkpoint a digest of what went into it: cheap,
so that many histories can be run. The real one is the product's store, aggregator and publisher
over a vector of two elements.
"""

import atexit
import hashlib
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tapestry.checkpoints.manifest import Absence, Manifest, OuterRecord, Participation, RoundRecord
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Contribution, payload_digest
from tapestry.errors import RejectedError, UnavailableError
from tapestry.identity.certificates import (
    certificate_request,
    create_tls_key,
    issue_member_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import public_bytes
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry_coordinator import failpoints
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import ClosedRound
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import Published, folded
from tapestry_coordinator.settling import Settling
from tapestry_coordinator.tables import metadata
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.recomputing import recomputed
from tests.coordinator.small import Small, found_small, signing_key
from tests.simulation.world import START

_TMPFS = Path("/dev/shm")  # noqa: S108 - where waiting for the disk costs nothing
_Key = tuple[int, str]


class Home(CoordinatorHome):
    """A coordinator's folder whose files are read once for all processes of a history."""

    _read: ClassVar[dict[str, Any]] = {}

    def load_policy(self) -> FederationPolicy:
        return self._once("policy", super().load_policy)

    def load_genesis(self) -> Any:
        return self._once("genesis", super().load_genesis)

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._read:
            self._read[name] = read()
        return self._read[name]


class Remembering(Registry):
    """The registry, whose answers are remembered until the next write: most are asked for often."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._answers: dict[str, dict[tuple[object, ...], Any]] = defaultdict(dict)

    def forget(self) -> None:
        """Read the database again, as a new process does."""
        self._answers.clear()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in _READS:
            return partial(self._remembered, name, found)
        if name in _WRITES:
            for changed in _WRITES[name]:
                self._answers[changed].clear()
        return found

    def _remembered(self, name: str, read: Callable[..., Any], *args: Any, **named: Any) -> Any:
        answers, key = self._answers[_READS[name]], (name, *args, *named.items())
        if key not in answers:
            answers[key] = read(*args, **named)
        return answers[key]


_READS = {
    "member": "members",
    "members": "members",
    "plan": "rounds",
    "contributions": "rounds",
    "policy": "policies",
    "newest_policy": "policies",
}
_WRITES = {
    "record_event": ("rounds", "members"),
    "enrol": ("members",),
    "renew": ("members",),
    "revoke": ("members",),
    "seen": ("members",),
    "adopt_policy": ("policies",),
}
"""What a method reads or changes."""


class Plant(Protocol):
    """Where a coordinator's process stands."""

    small: Small
    registry: Remembering
    database: sqlite3.Connection

    def store(self) -> Any:
        """A store as a new process opens it."""

    def recover(self, store: Any) -> None:
        """What a new process does before it serves."""

    def publish(self, closed: ClosedRound, store: Any) -> Envelope:
        """Make the checkpoint of a closed round."""

    def settle(self, number: int, store: Any) -> None:
        """Make it durable."""

    def recomputed(self) -> Mapping[int, bytes]:
        """The manifests' payloads, made again from the records alone."""


@cache
def _database() -> tuple[Remembering, sqlite3.Connection]:
    """One database for all histories of this process: migrating one costs as much as a history."""
    path = _temporary() / "coordinator.db"
    return Remembering(f"sqlite:///{path}"), sqlite3.connect(path, isolation_level=None)


def empty_database(genesis: Envelope, policy: FederationPolicy) -> tuple[Remembering, Any]:
    """Return the database with nothing in it but a founded federation."""
    registry, database = _database()
    for table in reversed(metadata.sorted_tables):
        database.execute(f"DELETE FROM {table.name}")  # noqa: S608 - our own names
    registry.forget()
    registry.add_genesis(payload_digest(genesis), genesis)
    registry.adopt_policy(policy, now=START)
    return registry, database


@cache
def certificate(folder: Path, member_id: str, generation: int) -> tuple[bytes, int]:
    """Return a member's certificate and its serial; `generation` counts its enrolments."""
    assert generation >= 0
    home = CoordinatorHome(folder)
    federation = home.load_genesis().origin.federation
    pem = issue_member_certificate(
        home.load_authority(),
        certificate_request(create_tls_key(), member_id=member_id),
        federation=federation,
        member_id=member_id,
        now=datetime.fromtimestamp(START, UTC),
        lifetime_days=30,
    )
    return pem, read_member_certificate(pem, federation=federation).serial


def enrol(plant: Plant, member_id: str, generation: int, *, now: float) -> bytes:
    """Invite and enrol a member; return its certificate."""
    pem, serial = certificate(origin(), member_id, generation)
    token = hashlib.sha256(f"{member_id} {generation}".encode()).digest()
    plant.registry.add_invitation(token, member_id=member_id, now=now, expires_at=now + 60)
    plant.registry.enrol(
        token,
        member_id=member_id,
        signing_key=public_bytes(signing_key(member_id)),
        certificate_serial=serial,
        now=now,
    )
    return pem


@cache
def _temporary() -> Path:
    """A folder that ends with this process."""
    where = _TMPFS if _TMPFS.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="tapestry-simulation-", dir=where))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def origin() -> Path:
    """A founded federation, which no history changes."""
    parent = _temporary()
    found_small(parent / "fed", clip=0.0, learning_rate=0.5)
    return (parent / "fed").resolve()


@dataclass
class ModelDisk:
    """Contributions and checkpoints in a dictionary."""

    uploads: dict[_Key, tuple[tuple[bytes, ...], set[int]]] = field(default_factory=dict)
    whole: dict[_Key, tuple[bytes, ...]] = field(default_factory=dict)
    published: dict[int, Envelope] = field(default_factory=dict)


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
        """There is no store of blobs."""

    def close(self) -> None:
        self._open.clear()

    def _require_space(self) -> None:
        if not self._accepts():
            raise UnavailableError("the coordinator cannot store this contribution now: disk full")


class ModelPlant:
    """A database in memory and a modelled disk."""

    def __init__(self, accepts: Callable[[], bool]) -> None:
        home = Home(origin())
        self.small = _small(home)
        self.registry, self.database = empty_database(self.small.lineage[0], home.load_policy())
        self.disk = ModelDisk()
        self._accepts = accepts

    def store(self) -> ModelStore:
        return ModelStore(self.disk, self._accepts)

    def recover(self, store: ModelStore) -> None:
        """Nothing is half-done on a modelled disk."""

    def publish(self, closed: ClosedRound, store: ModelStore) -> Envelope:
        number = closed.plan.round
        if number not in self.disk.published:
            for stored in closed.contributions:
                if store.finished(number, stored.member_id) is None:
                    raise UnavailableError(f"{stored.member_id}'s contribution is gone")
                failpoints.reach("fragment-aggregated")
            envelope = modelled(closed).signed(self.small.key)
            failpoints.reach("checkpoint-built")
            self.disk.published[number] = envelope
            failpoints.reach("checkpoint-in-place")
        return self.disk.published[number]

    def settle(self, number: int, store: ModelStore) -> None:  # noqa: ARG002 - as the real one
        failpoints.reach("checkpoint-durable")

    def recomputed(self) -> Mapping[int, bytes]:
        made = {}
        for number in range(1, (self.registry.newest_round() or 0) + 1):
            events = self.registry.round_events(number)
            state = folded(number, [(at, e) for at, e in events if not isinstance(e, Published)])
            made[number] = modelled(ClosedRound.recorded(self.registry, state)).payload()
        return made


def modelled(closed: ClosedRound) -> Manifest:
    """Return a manifest that follows from the recorded round as the publisher's does."""
    base = Manifest.parsed(closed.lineage[-1].payload, what="manifest")
    declared = [
        Contribution.parsed(stored.envelope.payload, what="contribution")
        for stored in closed.contributions
    ]
    roots = "".join(contribution.root for contribution in declared)
    vector = hashlib.sha256(f"{base.vector_root}{roots}".encode()).hexdigest()
    present = {stored.member_id for stored in closed.contributions}
    return Manifest(
        round=closed.plan.round,
        genesis=closed.plan.genesis,
        parent=closed.plan.base,
        created_at=closed.closed_at,
        layout=closed.plan.layout,
        elements=base.elements,
        vector_root=vector,
        files=base.files,
        made=RoundRecord(
            plan=closed.plan_digest,
            policy=closed.plan.policy,
            inner=closed.plan.inner,
            codec=closed.plan.codec,
            quorum=closed.plan.quorum,
            gamma=0.5,
            influence_cap=1.0,
            clip=0.0,
            participation=tuple(
                Participation(
                    member_id=stored.member_id,
                    tokens=contribution.tokens,
                    weight=1 / len(present),
                    clip_factor=1.0,
                    norm=stored.norm,
                    root=contribution.root,
                    contribution=stored.digest,
                )
                for stored, contribution in zip(closed.contributions, declared, strict=True)
            ),
            absent=tuple(
                Absence(member_id=member_id, reason=closed.declined.get(member_id, "no answer"))
                for member_id in closed.plan.cohort
                if member_id not in present
            ),
            outer=OuterRecord(
                optimizer="nesterov", learning_rate=0.5, momentum=0.9, state_root=vector
            ),
        ),
    )


@cache
def _small(home: Home) -> Small:
    return Small(home)


class RealPlant:
    """A database in memory; contributions and checkpoints in files, made by the product."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(origin(), folder / "fed")
        self._folder = folder
        self.small = Small(CoordinatorHome(folder.resolve() / "fed"))
        home = self.small.home
        self.registry, self.database = empty_database(self.small.lineage[0], home.load_policy())

    def store(self) -> FragmentStore:
        return FragmentStore(self.small.home.contributions, self.small.layout)

    def recover(self, store: FragmentStore) -> None:
        self._settling(store).recover()

    def publish(self, closed: ClosedRound, store: FragmentStore) -> Envelope:
        self._settling(store).begin(closed.plan.round)
        return self._publisher(store).publish(closed)

    def settle(self, number: int, store: FragmentStore) -> None:
        self._settling(store).finish(number)

    def recomputed(self) -> Mapping[int, bytes]:
        again = recomputed(self.small.home, self.registry, self._folder / "again")
        return {number: envelope.payload for number, envelope in enumerate(again)}

    def _publisher(self, store: FragmentStore) -> Any:
        return type(self.small.publisher)(home=self.small.home, key=self.small.key, store=store)

    def _settling(self, store: FragmentStore) -> Settling:
        return Settling(self.small.home, self.registry, self._publisher(store))
