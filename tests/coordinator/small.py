"""A coordinator whose model is a handful of numbers, so that every figure can be redone by hand.

Shapes: P elements of the vector.
"""

import atexit
import gc
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import read_lineage
from tapestry.checkpoints.manifest import verify_lineage
from tapestry.checkpoints.policy import AggregationPolicy, FederationPolicy, save_policy
from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import public_bytes
from tapestry.ledger.entries import CHECKPOINT, Entry
from tapestry.ledger.heads import Head, cosign_head, origin_of, sign_head
from tapestry.ledger.merkle import Tree
from tapestry.ledger.proof import PROOF_FILE, write_proof
from tapestry.objectives.causal_lm import CausalLM
from tapestry.objectives.objective import Created
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.fragments import fragment_digest
from tapestry.params.layout import ParameterLayout
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import DATABASE_FILE, database_url
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import entry_of_contribution
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.receiving import Receiving, StoredContribution
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import (
    CoordinatorSettings,
    InnerTable,
    NetworkSettings,
    RoundsSettings,
)
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_coordinator.uploads import FragmentStore
from tapestry_coordinator.web.settings import PageSettings

FOUNDED_AT = 1_750_000_000.0
STEPS, SEQUENCES, SEQUENCE_TOKENS = 10, 1, 8
MOST_TOKENS = STEPS * SEQUENCES * SEQUENCE_TOKENS


class Numbers(torch.nn.Module):
    """One parameter: a vector of `elements` ones."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.ones(elements))


@dataclass(frozen=True)
class FewNumbers(CausalLM):
    """A language model in everything but the model."""

    elements: int

    def create(self, settings: Mapping[str, Any], *, seed: int) -> Created:  # noqa: ARG002
        return Created(
            module=Numbers(self.elements),
            files={"config.json": b"{}\n"},
            settings={"elements": self.elements},
        )


class TwoParts(torch.nn.Module):
    """Two numbers to train, and three that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.ones(2))
        self.still = torch.nn.Parameter(torch.tensor([7.0, 8.0, 9.0]))


@dataclass(frozen=True)
class TwoPartsObjective(CausalLM):
    """The same with a part that may be frozen."""

    def create(self, settings: Mapping[str, Any], *, seed: int) -> Created:  # noqa: ARG002
        return Created(module=TwoParts(), files={"config.json": b"{}\n"}, settings={})


def signing_key(member_id: str) -> Ed25519PrivateKey:
    """The key with which a member of the tests signs, always the same."""
    return Ed25519PrivateKey.from_private_bytes(member_id.encode().ljust(32, b"."))


def arriving(stored: StoredContribution) -> Receiving:
    """A contribution on its way into the registry, with the receipt that it has."""
    entry = entry_of_contribution(stored.round, stored.member_id, stored.digest)
    return Receiving(entry, lambda _index: stored)


def record_in_ledger(
    folder: Path, key: Ed25519PrivateKey, witnesses: Mapping[str, Ed25519PrivateKey]
) -> None:
    """Write the proof that a checkpoint is in the ledger, cosigned by its witnesses."""
    lineage = verify_lineage(read_lineage(folder))
    entry = Entry(kind=CHECKPOINT, round=lineage.newest.round, payload_digest=lineage.newest_digest)
    tree = Tree()
    index = tree.append(entry.leaf())
    origin = origin_of(lineage.origin.federation, lineage.genesis_digest)
    head = Head(origin, tree.size, tree.root())
    signed = sign_head(head, key).with_cosignatures(
        [
            cosign_head(head, member_id=member, key=member_key, now=FOUNDED_AT)
            for member, member_key in witnesses.items()
        ]
    )
    proof = write_proof(tree, leaf=entry.leaf(), index=index, head=signed)
    (folder / PROOF_FILE).write_bytes(proof)


class Small:
    """A coordinator's folder, and rounds made of whatever contributions a test wants."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.home = home
        self.layout: ParameterLayout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
        self.store = FragmentStore(home.contributions, self.layout)
        self.key = home.load_signing_key()
        self.policy = home.load_policy()
        self.publisher = Publisher(home=home, key=self.key, store=self.store)

    @property
    def lineage(self) -> list[Envelope]:
        """Manifests from genesis to the newest published one."""
        return read_lineage(max(self.home.published.glob("round-*")))

    def plan(self, cohort: tuple[str, ...], *, quorum: int = 1) -> RoundPlan:
        """The plan of the next round."""
        lineage = verify_lineage(self.lineage)
        settings = self.home.load_settings()
        return RoundPlan(
            genesis=lineage.genesis_digest,
            round=lineage.newest.round + 1,
            attempt=1,
            base=lineage.newest_digest,
            layout=lineage.newest.layout,
            cohort=cohort,
            quorum=quorum,
            grace_seconds=300.0,
            deadline=FOUNDED_AT + 3600,
            objective="causal-lm",
            inner=settings.inner.settings(),
            policy=self.policy.digest,
            codec=self.policy.aggregation.codec,
            max_element=10.0,
            seed=1,
        )

    def contributed(
        self, plan: RoundPlan, member_id: str, delta: Float32Array, *, tokens: int = 1
    ) -> StoredContribution:
        """Store a pseudo-gradient as the transfer service would."""
        encoded = encode(delta, self.layout, plan.codec)
        self.store.open(
            plan.round,
            member_id,
            codec=plan.codec,
            digests=tuple(map(fragment_digest, encoded)),
            max_element=plan.max_element,
        )
        for index, data in enumerate(encoded):
            self.store.put(plan.round, member_id, index=index, data=data)
        root, norm = self.store.finish(plan.round, member_id)
        envelope = declare(
            plan, member_id, root=root, fragments=len(encoded), norm=norm, tokens=tokens
        )
        digest = payload_digest(envelope)
        receipt = Receipt(
            genesis=plan.genesis,
            round=plan.round,
            member_id=member_id,
            contribution=digest,
            root=root.hex(),
            accepted_at=FOUNDED_AT + 30,
        )
        return StoredContribution(
            round=plan.round,
            member_id=member_id,
            digest=digest,
            envelope=envelope,
            receipt=receipt.signed(self.key),
            norm=norm,
            signing_key=public_bytes(signing_key(member_id)),
        )

    def closed(
        self,
        deltas: Mapping[str, list[float]],
        *,
        tokens: Mapping[str, int] | None = None,
        declined: Mapping[str, str] | None = None,
        silent: tuple[str, ...] = (),
        evaluations: tuple[StoredEvaluation, ...] = (),
    ) -> ClosedRound:
        """A round that closed with these pseudo-gradients."""
        declined = declined or {}
        plan = self.plan(tuple(sorted({*deltas, *declined, *silent})))
        return ClosedRound(
            plan=plan,
            plan_envelope=plan.signed(self.key),
            closed_at=FOUNDED_AT + 60 * plan.round,
            contributions=[
                self.contributed(
                    plan,
                    member_id,
                    np.float32(deltas[member_id]),
                    tokens=(tokens or {}).get(member_id, 1),
                )
                for member_id in sorted(deltas)
            ],
            policy=self.policy,
            declined=declined,
            lineage=self.lineage,
            evaluations=evaluations,
        )

    def vector(self, round_number: int) -> list[float]:
        """The parameters of a published checkpoint."""
        path = self.home.checkpoint(round_number) / MODEL_FILE
        return [float(x) for x in open_vector_file(path).vector]


def found_small(
    folder: Path,
    elements: int = 2,
    *,
    federation: str = "loom",
    rounds: RoundsSettings | None = None,
    policy: Mapping[str, Mapping[str, Any]] | None = None,
    database: str = "",
    **aggregation: Any,
) -> Small:
    """Found a federation over `elements` ones; `aggregation` goes into that table of the policy.

    `policy` goes into its other tables; `database` is the URL of one with empty tables, if the
    registry is not to be a file in the folder.

    Folders with the same name and length are copies of one, with its keys.
    """
    shutil.copytree(_founded(elements, federation), folder)
    home = CoordinatorHome(folder.resolve())
    if rounds is not None:
        settings_module.save(folder, home.load_settings().model_copy(update={"rounds": rounds}))
    if database:
        move_registry(home, database)
    if aggregation or policy:
        changed = changed_policy(home.load_policy(), **(policy or {}), aggregation=aggregation)
        save_policy(home.policy, changed)
        registry = Registry(database_url(home))
        registry.adopt_policy(changed, now=FOUNDED_AT)
        registry.close()
    return Small(home)


def move_registry(home: CoordinatorHome, database: str) -> None:
    """Have the registry of a federation that was just founded in another database."""
    settings = home.load_settings()
    storage = settings.storage.model_copy(update={"database": database})
    settings_module.save(home.folder, settings.model_copy(update={"storage": storage}))
    (home.folder / DATABASE_FILE).unlink()
    (genesis,) = read_lineage(home.checkpoint(0))
    registry = Registry(database)
    registry.add_genesis(payload_digest(genesis), genesis)
    registry.adopt_policy(home.load_policy(), now=FOUNDED_AT)
    registry.close()


def found_in_part(folder: Path, **aggregation: Any) -> Small:
    """Found a federation that trains two numbers of five."""
    policy = AggregationPolicy(**{"codec": "float32", **aggregation})
    founding = Founding(
        federation="loom",
        objective=TwoPartsObjective(),
        create={},
        pool=[],
        seed=1,
        trainable=("num*",),
        policy=FederationPolicy(aggregation=policy),
    )
    found(folder, founding, settings_for, now=FOUNDED_AT)
    return Small(CoordinatorHome(folder))


def changed_policy(policy: FederationPolicy, **tables: Mapping[str, Any]) -> FederationPolicy:
    """The policy with other values in some of its tables."""
    values = policy.model_dump()
    for name, changes in tables.items():
        values[name] |= changes
    return FederationPolicy(**values)


@cache
def _founded(elements: int, federation: str) -> Path:
    """Found a federation once for all tests of this process."""
    parent = Path(tempfile.mkdtemp(prefix="tapestry-tests-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    founding = Founding(
        federation=federation,
        objective=FewNumbers(elements),
        create={},
        pool=[],
        seed=1,
        policy=FederationPolicy(aggregation=AggregationPolicy(codec="float32")),
    )
    found(parent / "coordinator", founding, settings_for, now=FOUNDED_AT)
    return parent / "coordinator"


def settings_for(_inner: InnerTable) -> CoordinatorSettings:
    """Settings whose every inner step sees eight tokens."""
    return CoordinatorSettings(
        network=NetworkSettings(address="localhost:7443", enrolment_address="localhost:7444"),
        page=PageSettings(enabled=False),
        inner=InnerTable(
            steps=STEPS,
            sequences=SEQUENCES,
            sequence_tokens=SEQUENCE_TOKENS,
            learning_rate=1e-3,
        ),
    )


def forget_stores() -> Iterator[None]:
    """A module's fixture: stores with open files are collected before the next module begins."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def encode(delta: Float32Array, layout: ParameterLayout, codec: str) -> list[bytes]:
    """Return the encoded fragments of a pseudo-gradient."""
    chosen = codec_named(codec)
    return [chosen.encode(delta[slice(*layout.bounds(i))]) for i in range(layout.fragments)]


def declare(
    plan: RoundPlan, member_id: str, *, root: bytes, fragments: int, **changes: Any
) -> Envelope:
    """Sign a contribution to `plan`; `changes` replace fields."""
    key = changes.pop("key", None) or signing_key(member_id)
    values = {
        "genesis": plan.genesis,
        "round": plan.round,
        "base": plan.base,
        "member_id": member_id,
        "codec": plan.codec,
        "fragments": fragments,
        "root": root.hex(),
        "tokens": MOST_TOKENS,
        "steps": STEPS,
        "norm": 1.0,
        **changes,
    }
    return Contribution(**values).signed(key)
