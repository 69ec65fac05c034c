"""What outlives a coordinator's process: its database and its disk, modelled or real.

The modelled disk is a dictionary, and a modelled checkpoint a digest of what went into it: cheap,
so that many histories can be run. The real one is the product's store, aggregator and publisher
over a vector of two elements.
"""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tapestry.aggregation.weights import default_cap, staleness_discount, token_weights
from tapestry.checkpoints.folder import CARD_FILE, MANIFEST_FILE
from tapestry.checkpoints.manifest import (
    Absence,
    Card,
    Manifest,
    OuterRecord,
    Participation,
    RoundRecord,
)
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import UnavailableError
from tapestry.identity.certificates import (
    certificate_request,
    create_tls_key,
    issue_member_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.identity.keys import public_bytes
from tapestry_coordinator import failpoints
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import Seal, seal_of
from tapestry_coordinator.publisher import reverted_manifest
from tapestry_coordinator.rounds import folded
from tapestry_coordinator.settling import Settling
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.recomputing import recomputed
from tests.coordinator.small import Small, found_small, signing_key
from tests.simulation.disks import ModelDisk, ModelStore
from tests.simulation.modelled_registry import ModelledRegistry
from tests.simulation.remembering import Remembering, empty_registry
from tests.simulation.terms import Terms
from tests.simulation.world import START

_TMPFS = Path("/dev/shm")  # noqa: S108 - where waiting for the disk costs nothing


class Home(CoordinatorHome):
    """A coordinator's folder whose files are read once for all processes of all histories."""

    _read: ClassVar[dict[str, Any]] = {}

    def founders_policy(self) -> FederationPolicy:
        """The policy that lies in the folder."""
        policy: FederationPolicy = self._once("founders", super().load_policy)
        return policy

    def load_policy(self) -> FederationPolicy:
        policy: FederationPolicy = self._read["policy"]
        return policy

    def save_policy(self, policy: FederationPolicy) -> None:
        self._read["policy"] = policy

    def load_genesis(self) -> Any:
        return self._once("genesis", super().load_genesis)

    def load_settings(self) -> Any:
        return self._once("settings", super().load_settings)

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._read:
            self._read[name] = read()
        return self._read[name]


AnyRegistry = Remembering | ModelledRegistry


class Plant(Protocol):
    """Where a coordinator's process stands."""

    small: Small
    founders: FederationPolicy
    registry: AnyRegistry

    def store(self) -> Any:
        """A store as a new process opens it."""

    def recover(self, store: Any) -> None:
        """What a new process does before it serves."""

    def propose(self, closed: ClosedRound, store: Any) -> Envelope:
        """Make the checkpoint of a closed round, for members to measure."""

    def publish(self, closed: ClosedRound, store: Any) -> Envelope:
        """Make the checkpoint of a closed round."""

    def fail_over(self) -> None:
        """Let the next process be on another machine."""

    def settle(self, number: int, store: Any) -> None:
        """Make it durable."""

    def recomputed(self) -> Mapping[int, bytes]:
        """The manifests' payloads, made again from the records alone."""


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
        now=datetime.fromtimestamp(START, UTC) - timedelta(days=1),
        lifetime_days=30,
    )
    return pem, read_member_certificate(pem, federation=federation).serial


def enrol(plant: Plant, member_id: str, generation: int, *, now: float) -> bytes:
    """Invite and enrol a member; return its certificate."""
    pem, serial = certificate(origin(), member_id, generation)
    key = public_bytes(signing_key(member_id))
    plant.registry.admit(member_id, signing_key=key, serial=serial, now=now)
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


class ModelPlant:
    """A modelled disk, and a registry that is modelled too or the real one."""

    def __init__(
        self, terms: Terms, accepts: Callable[[], bool], *, has_database: bool = False
    ) -> None:
        home = Home(origin())
        policy = terms.policy(home.founders_policy())
        home.save_policy(policy)
        self.small = _small(home)
        self.founders = home.founders_policy()
        self.registry: AnyRegistry = (
            empty_registry(_temporary(), _genesis(), policy, _seal(), now=START)
            if has_database
            else ModelledRegistry(_genesis(), policy, _seal(), now=START)
        )
        self._forget_candidates()
        self.disk = ModelDisk()
        self._accepts = accepts

    def store(self) -> ModelStore:
        return ModelStore(self.disk, self._accepts)

    def recover(self, store: ModelStore) -> None:
        """Nothing is half-done on a modelled disk."""

    def propose(self, closed: ClosedRound, store: ModelStore) -> Envelope:
        number, disk = closed.plan.round, self.disk
        if number not in disk.candidates:
            disk.candidates[number] = self._made(closed, store)
            failpoints.reach("checkpoint-in-place")
        folder = self.small.home.candidate(number)
        folder.mkdir(parents=True, exist_ok=True)
        card = Card(manifest=payload_digest(disk.candidates[number]), files=())
        (folder / CARD_FILE).parent.mkdir(exist_ok=True)
        (folder / MANIFEST_FILE).parent.mkdir(exist_ok=True)
        (folder / CARD_FILE).write_bytes(to_json(card.signed(self.small.key)))
        (folder / MANIFEST_FILE).write_bytes(to_json(disk.candidates[number]))
        return self._measured(closed, disk.candidates[number])

    def publish(self, closed: ClosedRound, store: ModelStore) -> Envelope:
        number, disk = closed.plan.round, self.disk
        if number not in disk.published:
            if number in disk.candidates and not closed.reverted:
                disk.published[number] = disk.candidates[number]
            else:
                disk.published[number] = self._made(closed, store)
            failpoints.reach("checkpoint-in-place")
            disk.candidates.pop(number, None)
            self._forget_candidates()
        if closed.reverted:
            return disk.published[number]
        return self._measured(closed, disk.published[number])

    def _made(self, closed: ClosedRound, store: ModelStore) -> Envelope:
        for stored in closed.contributions:
            if store.finished(stored.round, stored.member_id) is None:
                raise UnavailableError(f"{stored.member_id}'s contribution is gone")
            failpoints.reach("fragment-aggregated")
        envelope = manifest_of(closed).signed(self.small.key)
        failpoints.reach("checkpoint-built")
        return envelope

    def _measured(self, closed: ClosedRound, envelope: Envelope) -> Envelope:
        if closed.candidate and payload_digest(envelope) != closed.candidate:
            raise UnavailableError("what comes out is not what members measured")
        return envelope

    def fail_over(self) -> None:
        self.disk.leave_behind(self.registry.newest_round() or 0)
        self._forget_candidates()

    def _forget_candidates(self) -> None:
        shutil.rmtree(self.small.home.folder / "candidates", ignore_errors=True)

    def settle(self, number: int, store: ModelStore) -> None:  # noqa: ARG002 - as the real one
        failpoints.reach("checkpoint-durable")

    def recomputed(self) -> Mapping[int, bytes]:
        made = {}
        for number in range(1, (self.registry.newest_round() or 0) + 1):
            events = self.registry.round_events(number)
            state = folded(number, [(at, e) for at, e in events if not isinstance(e, Published)])
            made[number] = manifest_of(ClosedRound.recorded(self.registry, state)).payload()
        return made


def manifest_of(closed: ClosedRound) -> Manifest:
    """Return the manifest of a round that was published as it came out, or reverted."""
    if not closed.reverted:
        return modelled(closed)
    base = Manifest.parsed(closed.lineage[-1].payload, what="manifest")
    return reverted_manifest(closed, base, base.files)


def modelled(closed: ClosedRound) -> Manifest:
    """Return a manifest that follows from the recorded round as the publisher's does."""
    base = Manifest.parsed(closed.lineage[-1].payload, what="manifest")
    out = closed.weightless
    used = [(s, s.declared) for s in closed.contributions if s.member_id not in out]
    roots = "".join(contribution.root for _stored, contribution in used)
    vector = hashlib.sha256(f"{base.vector_root}{roots}".encode()).hexdigest()
    present = {stored.member_id for stored in closed.contributions}
    late = closed.policy.lateness.discount
    tokens = {stored.member_id: contribution.tokens for stored, contribution in used}
    weights = token_weights(
        tokens,
        gamma=0.5,
        cap=default_cap(len(tokens)),
        discounts={s.member_id: staleness_discount(s.staleness, discount=late) for s, _ in used},
    )
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
            influence_cap=default_cap(len(tokens)),
            clip=0.0,
            participation=tuple(
                Participation(
                    member_id=stored.member_id,
                    key=stored.signing_key.hex(),
                    tokens=stored.declared.tokens,
                    weight=weights.get(stored.member_id, 0.0),
                    clip_factor=1.0,
                    norm=stored.norm,
                    root=stored.declared.root,
                    contribution=stored.digest,
                    staleness=stored.staleness,
                    base_round=stored.round - 1 if stored.staleness else None,
                    reason=out.get(stored.member_id, ""),
                )
                for stored in closed.contributions
            ),
            absent=tuple(
                Absence(member_id=member_id, reason=closed.declined.get(member_id, "no answer"))
                for member_id in closed.plan.cohort
                if member_id not in present
            ),
            outer=OuterRecord(
                optimizer="nesterov",
                learning_rate=0.5,
                momentum=0.9,
                state_before=None if base.made is None else base.made.outer.state_root,
                state_root=vector,
            ),
        ),
    )


@cache
def _small(home: Home) -> Small:
    return Small(home)


@cache
def _seal() -> Seal:
    home = CoordinatorHome(origin())
    genesis = home.load_genesis()
    return seal_of(
        home.load_signing_key(),
        federation=genesis.origin.federation,
        genesis_digest=genesis.genesis_digest,
    )


@cache
def _genesis() -> Envelope:
    return Small(CoordinatorHome(origin())).lineage[0]


class RealPlant:
    """A database in memory; contributions and checkpoints in files, made by the product."""

    def __init__(self, terms: Terms, folder: Path) -> None:
        shutil.copytree(origin(), folder / "fed")
        self._folder = folder
        self.small = Small(CoordinatorHome(folder.resolve() / "fed"))
        self.founders = self.small.policy
        policy = terms.policy(self.founders)
        self.small.home.save_policy(policy)
        (genesis,) = self.small.lineage
        self.registry = empty_registry(_temporary(), genesis, policy, _seal(), now=START)

    def store(self) -> FragmentStore:
        return FragmentStore(self.small.home.contributions, self.small.layout)

    def recover(self, store: FragmentStore) -> None:
        self._settling(store).recover()

    def propose(self, closed: ClosedRound, store: FragmentStore) -> Envelope:
        return self._publisher(store).propose(closed)

    def fail_over(self) -> None:
        """What is unfinished stays behind."""
        shutil.rmtree(self.small.home.folder / "candidates", ignore_errors=True)
        for upload in self.small.home.contributions.glob("*/*.upload"):
            upload.unlink()

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
