"""A small federation on disk, made once for all tests that read published checkpoints."""

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import read_lineage
from tapestry.checkpoints.manifest import verify_lineage
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import public_bytes
from tapestry.objectives.objective import objective_named
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragment_digest
from tapestry.params.layout import ParameterLayout
from tapestry_coordinator.card import write_card
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import sqlite_url
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, NetworkSettings
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.small import record_in_ledger
from tests.forking import Forks
from tests.servers import SQLITE_ALONE, Postgres, running_postgres

FOUNDED_AT = 1_750_000_000.0
CODEC = "int8"
DATABASES = ("sqlite", "postgresql")
TOKENS = {"fr-bnf": 10_000, "is-lbs": 2_500}


hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests between processes, if there are several."""
    from tests.sharing import FromBothEnds  # noqa: PLC0415 - needs pytest-xdist

    return FromBothEnds(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Line the tests up for the processes that share them."""
    if hasattr(config, "workerinput"):
        from tests.sharing import place  # noqa: PLC0415 - needs pytest-xdist

        items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over the million objects of what has been imported.

    accelerate asks for one whenever a training ends: half a second each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread; see `tests.threads`, which imports torch."""
    from tests import threads  # noqa: PLC0415

    with threads.one_thread():
        yield


@pytest.fixture
def threads_given_back() -> Iterator[None]:
    """Give back the number of threads that training in a test has chosen."""
    from tests import threads  # noqa: PLC0415

    with threads.threads_given_back():
        yield


@dataclass(frozen=True)
class Federation:
    """A coordinator's folder after one round of two members."""

    home: CoordinatorHome
    publisher: Publisher
    closed: ClosedRound
    evaluations: list[StoredEvaluation]

    @property
    def genesis(self) -> Path:
        """The published folder of round 0."""
        return self.home.checkpoint(0)

    @property
    def newest(self) -> Path:
        """The published folder of round 1, which has every kind of file."""
        return self.home.checkpoint(1)


def settings_for(inner: InnerTable) -> CoordinatorSettings:
    """Return a federation's settings with the defaults."""
    network = NetworkSettings(address="localhost:7443", enrolment_address="localhost:7444")
    return CoordinatorSettings(network=network, inner=inner)


@pytest.fixture(scope="session")
def forks() -> Forks:
    """What starts `tapestry` processes without importing everything anew."""
    return Forks()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; tests take databases of their own."""
    with running_postgres() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests by every kind of database where that is asked for."""
    asked = getattr(metafunc.module, "EVERY_DATABASE", "TAPESTRY_EVERY_DATABASE" in os.environ)
    asked = asked and not getattr(metafunc.function, SQLITE_ALONE, False)
    if asked and "registry_at" in metafunc.fixturenames:
        metafunc.parametrize("registry_at", DATABASES, indirect=True)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def registry_at(request: pytest.FixtureRequest) -> str:
    """Where a small federation has its registry: the URL of a database, or empty for its file.

    A module that says `EVERY_DATABASE = True` runs by a database of each kind; with
    `TAPESTRY_EVERY_DATABASE=1` all do.
    """
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    server: Postgres = request.getfixturevalue("postgres")
    return server.registry_database()


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Found a federation, run one round on made-up pseudo-gradients, publish it."""
    folder = tmp_path_factory.mktemp("federation") / "coordinator"
    founding = Founding(
        federation="loom",
        objective=objective_named("causal-lm"),
        create={"size": "tiny"},
        pool=[],
        seed=1,
    )
    found(folder, founding, settings_for, now=FOUNDED_AT)
    home = CoordinatorHome(folder)
    settings, key = home.load_settings(), home.load_signing_key()
    layout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
    store = FragmentStore(home.contributions, layout)
    lineage = read_lineage(home.checkpoint(0))
    plan = _plan(lineage, settings)
    evaluations = [
        StoredEvaluation(
            round=round_number,
            member_id=member_id,
            language=member_id[:2],
            bits_per_byte=8.0 - round_number,
            held_out_bytes=4096,
        )
        for round_number in (0, 1)
        for member_id in TOKENS
    ]
    closed = ClosedRound(
        plan=plan,
        plan_envelope=plan.signed(key),
        policy=home.load_policy(),
        closed_at=FOUNDED_AT + 60,
        contributions=[
            _contributed(store, layout, plan, member_id, key, seed=seed)
            for seed, member_id in enumerate(TOKENS)
        ],
        declined={"ar-unc": "this node's policy refuses round 1"},
        lineage=lineage,
        evaluations=evaluations,
    )
    publisher = Publisher(home=home, key=key, store=store)
    envelope = publisher.publish(closed)
    write_card(home.checkpoint(1), [*lineage, envelope], evaluations, key, notes=home.notes(1))
    witnesses = {member_id: member_key(seed) for seed, member_id in enumerate(TOKENS)}
    record_in_ledger(home.checkpoint(1), key, witnesses)
    return Federation(home, publisher, closed, evaluations)


def member_key(seed: int) -> Ed25519PrivateKey:
    """The key with which a member of the federation signs."""
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def _plan(lineage: list[Envelope], settings: CoordinatorSettings) -> RoundPlan:
    genesis = verify_lineage(lineage)
    return RoundPlan(
        genesis=genesis.genesis_digest,
        round=1,
        attempt=1,
        base=genesis.newest_digest,
        layout=genesis.newest.layout,
        policy=FederationPolicy().digest,
        cohort=("ar-unc", *TOKENS),
        quorum=2,
        grace_seconds=300.0,
        deadline=FOUNDED_AT + 3600,
        objective="causal-lm",
        inner=settings.inner.settings(),
        codec=CODEC,
        max_element=10.0,
        seed=1,
    )


def _contributed(
    store: FragmentStore,
    layout: ParameterLayout,
    plan: RoundPlan,
    member_id: str,
    coordinator_key: Ed25519PrivateKey,
    *,
    seed: int,
) -> StoredContribution:
    codec = codec_named(plan.codec)
    rng = np.random.default_rng(seed)
    encoded = []
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        encoded.append(
            codec.encode(rng.standard_normal(stop - start, np.float32) * np.float32(0.01))
        )
    digests = tuple(map(fragment_digest, encoded))
    store.open(
        plan.round, member_id, codec=plan.codec, digests=digests, max_element=plan.max_element
    )
    for index, data in enumerate(encoded):
        store.put(plan.round, member_id, index=index, data=data)
    root, norm = store.finish(plan.round, member_id)
    contribution = Contribution(
        genesis=plan.genesis,
        round=plan.round,
        base=plan.base,
        member_id=member_id,
        codec=plan.codec,
        fragments=len(encoded),
        root=root.hex(),
        tokens=TOKENS[member_id],
        steps=plan.inner.steps,
        norm=norm,
    )
    envelope = contribution.signed(member_key(seed))
    receipt = Receipt(
        genesis=plan.genesis,
        round=plan.round,
        member_id=member_id,
        contribution=payload_digest(envelope),
        root=root.hex(),
        accepted_at=FOUNDED_AT + 30,
    )
    return StoredContribution(
        round=plan.round,
        member_id=member_id,
        digest=payload_digest(envelope),
        envelope=envelope,
        receipt=receipt.signed(coordinator_key),
        norm=norm,
        signing_key=public_bytes(member_key(seed)),
    )
