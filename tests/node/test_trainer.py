"""From a base checkpoint to a spooled contribution: signs, digests, declarations, restarts.

The model is the small federation's: about 0.8 million parameters in one fragment, so the tests
that need several fragments cut them smaller.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import (
    Contribution,
    InnerSettings,
    RoundPlan,
    SharedSlice,
)
from tapestry.checkpoints.vector_file import MODEL_FILE, VectorFile, VectorWriter, open_vector_file
from tapestry.errors import ConfigError, RejectedError, TapestryError, UntrustedError
from tapestry.identity.keys import public_bytes
from tapestry.objectives.reports import StepReport
from tapestry.objectives.training import InnerOptimizer
from tapestry.params import layout as layout_module
from tapestry.params.codecs import codec_named
from tapestry.params.modules import from_model
from tapestry_node.corpus_history import read_history
from tapestry_node.forgetting import forget
from tapestry_node.guard import sealed
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable, Policy
from tapestry_node.spool import Spooled, find_spooled
from tapestry_node.trainer import Trainer
from tests.conftest import Federation

pytestmark = pytest.mark.usefixtures("threads_given_back")

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
TOKENS = 16
INNER = InnerSettings(
    steps=2, sequences=2, sequence_tokens=TOKENS, learning_rate=1e-3, warmup_steps=3
)
OWN = public_bytes(KEY)
BASE = "b" * 64
DEFAULT_POLICY = Policy()


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    return made


@pytest.fixture
def trainer(home: NodeHome, federation: Federation, text: Path) -> Trainer:
    return new_trainer(home, federation, text)


def new_trainer(home: NodeHome, federation: Federation, text: Path) -> Trainer:
    settings = NodeTable(held_out_fraction=0.1, device="cpu")
    return Trainer(home, settings, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)


def plan_of(federation: Federation, **changes: object) -> RoundPlan:
    """Return a plan of round 2, from the small federation's newest checkpoint."""
    update = {"round": 2, "base": BASE, "inner": INNER, "codec": "float32", **changes}
    return federation.closed.plan.model_copy(update=update)


def go_on(_report: StepReport) -> bool:
    return True


def trained(
    trainer: Trainer, plan: RoundPlan, checkpoint: Path, *, previous: Path | None = None
) -> tuple[InnerOptimizer, VectorFile, list[float]]:
    return trainer.train_round(plan, checkpoint, previous_state=previous, on_step=go_on)


def contributed(trainer: Trainer, plan: RoundPlan, checkpoint: Path) -> Spooled:
    """Take a round's inner steps and spool the result."""
    return spooled_by(trainer, plan, *trained(trainer, plan, checkpoint))


def spooled_by(
    trainer: Trainer,
    plan: RoundPlan,
    optimizer: InnerOptimizer,
    base: VectorFile,
    losses: list[float],
    *,
    policy: Policy = DEFAULT_POLICY,
) -> Spooled:
    """Have the guard seal what was trained."""
    return sealed(
        trainer.home,
        plan,
        lambda file, look: trainer.write(plan, base, optimizer, losses, file, on_fragment=look),
        layout=trainer.layout,
        policy=policy,
        member_id="fr-bnf",
        key=KEY,
        seconds=1.25,
    )


def decoded(spooled: Spooled) -> np.ndarray:
    """Return the pseudo-gradient in a spool, fragment by fragment."""
    codec, layout = codec_named(spooled.contribution.codec), spooled.layout
    parts = []
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        parts.append(codec.decode(spooled.read_fragment(index), stop - start))
    return np.concatenate(parts)


# The contribution


def test_the_sign_is_base_minus_local(trainer: Trainer, federation: Federation) -> None:
    spooled = contributed(trainer, plan_of(federation), federation.newest)
    base = open_vector_file(federation.newest / MODEL_FILE).vector
    local = from_model(trainer.module, trainer.layout)
    assert not np.array_equal(local, base)
    np.testing.assert_array_equal(decoded(spooled), base - local)


def test_digests_and_root_are_those_of_the_bytes_on_the_disk(
    trainer: Trainer, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_module, "FRAGMENT_ELEMENTS", 300_000)
    spooled = contributed(trainer, plan_of(federation, codec="int8"), federation.newest)
    fragments = [spooled.read_fragment(index) for index in range(3)]
    assert spooled.contribution.fragments == 3
    assert b"".join(fragments) == (spooled.folder / "fragments.bin").read_bytes()
    digests = [hashlib.sha256(data).digest() for data in fragments]
    assert list(spooled.digests) == digests
    leaves = [hashlib.sha256(b"\0" + digest).digest() for digest in digests]
    left = hashlib.sha256(b"\1" + leaves[0] + leaves[1]).digest()
    assert spooled.contribution.root == hashlib.sha256(b"\1" + left + leaves[2]).hexdigest()


@pytest.mark.parametrize(("codec", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 8.125)])
def test_the_declared_norm_is_that_of_what_the_coordinator_decodes(
    trainer: Trainer, federation: Federation, codec: str, bits: float
) -> None:
    spooled = contributed(trainer, plan_of(federation, codec=codec), federation.newest)
    delta = decoded(spooled).astype(np.float64)
    assert spooled.contribution.norm == pytest.approx(math.sqrt(np.dot(delta, delta)), rel=1e-6)
    assert spooled.size_bytes == pytest.approx(trainer.layout.elements * bits / 8, rel=1e-4)


def test_a_contribution_declares_round_base_tokens_and_steps(
    trainer: Trainer, federation: Federation
) -> None:
    inner = INNER.model_copy(update={"steps": 3, "accumulation": 2})
    plan = plan_of(federation, inner=inner)
    optimizer, base, losses = trained(trainer, plan, federation.newest)
    declared = spooled_by(trainer, plan, optimizer, base, losses).contribution
    assert (declared.round, declared.base, declared.genesis) == (2, BASE, plan.genesis)
    assert (declared.member_id, declared.codec) == ("fr-bnf", "float32")
    assert declared.steps == 3
    assert declared.tokens == 3 * 2 * 2 * 16  # steps, micro-batches, sequences, length
    first, _middle, last = losses
    assert declared.metrics == {
        "loss_first": float(f"{first:.3g}"),
        "loss_last": float(f"{last:.3g}"),
        "seconds": 1.25,
    }
    assert declared.statistics == {}


def test_the_contribution_is_signed_by_the_member(trainer: Trainer, federation: Federation) -> None:
    spooled = contributed(trainer, plan_of(federation), federation.newest)
    opened = Contribution.opened(spooled.envelope, public_key=public_bytes(KEY), what="it")
    assert opened == spooled.contribution


def test_training_that_diverged_is_not_sent(trainer: Trainer, federation: Federation) -> None:
    optimizer, base, losses = trained(trainer, plan_of(federation), federation.newest)
    with torch.no_grad():
        next(trainer.module.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(RejectedError, match="training has diverged; lower the learning rate"):
        spooled_by(trainer, plan_of(federation), optimizer, base, losses)
    assert trainer.home.spooled() == []


# The spool


def test_a_bfloat16_checkpoint_is_trained_from(
    trainer: Trainer, federation: Federation, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "half"
    shutil.copytree(federation.newest, checkpoint)
    whole = open_vector_file(federation.newest / MODEL_FILE)
    with (checkpoint / MODEL_FILE).open("wb") as file:
        writer = VectorWriter(file, whole.layout, whole.extras, dtype="BF16")
        for index in range(whole.layout.fragments):
            writer.write(whole.read_fragment(index))
        writer.finish()
    base = torch.from_numpy(np.array(whole.vector)).to(torch.bfloat16).float().numpy()
    spooled = contributed(trainer, plan_of(federation), checkpoint)
    local = from_model(trainer.module, trainer.layout)
    np.testing.assert_array_equal(decoded(spooled), base - local)
    assert np.abs(decoded(spooled)).max() <= 3 * INNER.learning_rate, "from that base, not another"


def test_a_spool_survives_the_process(
    trainer: Trainer, home: NodeHome, federation: Federation
) -> None:
    plan = plan_of(federation, codec="int8")
    spooled = contributed(trainer, plan, federation.newest)
    found = find_spooled(NodeHome(home.folder), plan, trainer.layout, key=OWN)
    assert found == spooled
    assert [hashlib.sha256(found.read_fragment(0)).digest()] == list(found.digests)


def test_a_spool_answers_the_next_attempt_at_the_same_round(
    trainer: Trainer, home: NodeHome, federation: Federation
) -> None:
    spooled = contributed(trainer, plan_of(federation), federation.newest)
    again = plan_of(federation, attempt=2, deadline=2e9, quorum=1)
    assert find_spooled(home, again, trainer.layout, key=OWN) == spooled


def test_there_is_no_spool_before_the_first_round(home: NodeHome, federation: Federation) -> None:
    layout = open_vector_file(federation.newest / MODEL_FILE).layout
    assert find_spooled(home, plan_of(federation), layout, key=OWN) is None


def test_an_unfinished_spool_is_not_taken(
    trainer: Trainer, home: NodeHome, federation: Federation
) -> None:
    plan = plan_of(federation)
    spooled = contributed(trainer, plan, federation.newest)
    (spooled.folder / "contribution.json").unlink()  # it is written last
    assert find_spooled(home, plan, trainer.layout, key=OWN) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "c" * 64},
        {"codec": "int8"},
        {"round": 3},
        {"inner": INNER.model_copy(update={"steps": 1})},
    ],
    ids=["another base", "another codec", "another round", "fewer steps"],
)
def test_a_spool_of_another_plan_is_not_taken(
    trainer: Trainer, home: NodeHome, federation: Federation, changes: dict[str, object]
) -> None:
    contributed(trainer, plan_of(federation), federation.newest)
    assert find_spooled(home, plan_of(federation, **changes), trainer.layout, key=OWN) is None


def test_a_spool_of_another_model_says_what_to_do(
    trainer: Trainer, home: NodeHome, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = contributed(trainer, plan_of(federation), federation.newest)
    monkeypatch.setattr(layout_module, "FRAGMENT_ELEMENTS", 100_000)
    with pytest.raises(RejectedError, match="the spool is of another model; remove it"):
        find_spooled(home, plan_of(federation), spooled.layout, key=OWN)


def test_a_new_spool_replaces_what_a_crash_left(
    trainer: Trainer, home: NodeHome, federation: Federation
) -> None:
    left_over = home.spool(2)
    left_over.mkdir()
    (left_over / "fragments.bin").write_bytes(b"half")
    plan = plan_of(federation)
    spooled = contributed(trainer, plan, federation.newest)
    assert spooled.size_bytes == 4 * trainer.layout.elements
    assert find_spooled(home, plan, trainer.layout, key=OWN) == spooled


# Rounds, one after the other


@pytest.fixture
def local_checkpoint(tmp_path: Path, federation: Federation) -> Callable[[Trainer], Path]:
    """Write a trainer's present model as a checkpoint: a consensus of one."""

    def write(trainer: Trainer) -> Path:
        folder = tmp_path / "round-000002"
        shutil.copytree(federation.newest, folder)
        with (folder / MODEL_FILE).open("wb") as file:
            writer = VectorWriter(file, trainer.layout, {})
            vector = from_model(trainer.module, trainer.layout)
            for index in range(trainer.layout.fragments):
                writer.write(vector[slice(*trainer.layout.bounds(index))])
            writer.finish()
        return folder

    return write


def test_two_rounds_are_one_uninterrupted_run_if_the_consensus_is_the_local_model(
    trainer: Trainer,
    home: NodeHome,
    federation: Federation,
    text: Path,
    local_checkpoint: Callable[[Trainer], Path],
) -> None:
    long = INNER.model_copy(update={"steps": 4})
    _optimizer, _base, straight = trained(
        trainer, plan_of(federation, inner=long), federation.newest
    )
    uninterrupted = from_model(trainer.module, trainer.layout)

    contributed(trainer, plan_of(federation), federation.newest)
    first = json.loads((home.spool(2) / "digests.json").read_text())
    assert len(first) == 1
    restarted = new_trainer(home, federation, text)  # another process, another day
    _optimizer, _base, losses = trained(
        restarted,
        plan_of(federation, round=3),
        local_checkpoint(trainer),
        previous=home.trainer_state(2),
    )
    assert losses == straight[2:]
    np.testing.assert_array_equal(from_model(restarted.module, restarted.layout), uninterrupted)


def test_without_the_state_of_the_round_before_the_moments_are_fresh(
    trainer: Trainer, home: NodeHome, federation: Federation
) -> None:
    plan = plan_of(federation)
    optimizer, _base, first = trained(trainer, plan, federation.newest)
    assert optimizer.steps_done == 2
    again, _base, losses = trained(trainer, plan, federation.newest, previous=home.trainer_state(1))
    assert again.steps_done == 2
    assert losses == first


def test_a_round_always_starts_from_its_base(trainer: Trainer, federation: Federation) -> None:
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.fill_(1.0)
    _optimizer, base, _losses = trained(trainer, plan_of(federation), federation.newest)
    np.testing.assert_array_equal(
        base.vector, open_vector_file(federation.newest / MODEL_FILE).vector
    )
    local = from_model(trainer.module, trainer.layout)
    assert np.abs(base.vector - local).max() <= 2 * INNER.learning_rate  # two steps of AdamW


def test_training_ends_early_when_whoever_watches_says_so(
    trainer: Trainer, federation: Federation
) -> None:
    seen: list[StepReport] = []

    def stop_after_two(report: StepReport) -> bool:
        seen.append(report)
        return report.step < 2

    plan = plan_of(federation, inner=INNER.model_copy(update={"steps": 50}))
    optimizer, base, losses = trainer.train_round(
        plan, federation.newest, previous_state=None, on_step=stop_after_two
    )
    assert len(losses) == 2
    assert [(r.step, r.loss, r.tokens) for r in seen] == [
        (1, losses[0], 2 * 16),
        (2, losses[1], 2 * 16),
    ]
    spooled = spooled_by(trainer, plan, optimizer, base, losses)
    assert (spooled.contribution.steps, spooled.contribution.tokens) == (2, 2 * 2 * 16)


# The open pool


def pool_plan(federation: Federation, pool: Path, fraction: float) -> RoundPlan:
    data = pool.read_bytes()
    return plan_of(
        federation,
        inner=INNER.model_copy(update={"sequences": 4}),
        shared=SharedSlice(
            fraction=fraction,
            pool_digest=hashlib.sha256(data).hexdigest(),
            pool_bytes=len(data),
        ),
    )


@pytest.mark.parametrize(("fraction", "rows"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_its_share_of_every_batch_comes_from_the_pool(
    trainer: Trainer, federation: Federation, tmp_path: Path, fraction: float, rows: int
) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("\n\n".join("XYZ" * (20 + number) for number in range(9)), encoding="utf-8")
    plan = pool_plan(federation, pool, fraction)
    assert plan.shared is not None
    trainer.use_pool(pool, plan.shared.pool_digest)
    batches = trainer.batches(plan)
    shared_tokens = set(np.unique(trainer.batches(pool_plan(federation, pool, 1.0)).batch(0)))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.shape == (4, TOKENS + 1)
        assert sum(set(row) <= shared_tokens for row in batch.tolist()) == rows


def test_a_pool_without_text_is_named(
    trainer: Trainer, federation: Federation, tmp_path: Path
) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("a\n\nb", encoding="utf-8")
    plan = pool_plan(federation, pool, 0.25)
    assert plan.shared is not None
    with pytest.raises(ConfigError, match=r"pool\.txt: too little text"):
        trainer.use_pool(pool, plan.shared.pool_digest)


# Measuring, and what cannot be used


def test_measuring_a_checkpoint_uses_its_parameters_and_the_same_text(
    trainer: Trainer, federation: Federation
) -> None:
    genesis, newest = trainer.evaluate(federation.genesis), trainer.evaluate(federation.newest)
    assert genesis.text_bytes == newest.text_bytes == trainer.corpus.held_out_bytes
    assert genesis.bits_per_byte == pytest.approx(math.log2(260), abs=0.3)  # knows nothing yet
    assert newest.bits != genesis.bits
    assert trainer.evaluate(federation.genesis) == genesis


def test_a_checkpoint_of_another_model_is_not_loaded(
    trainer: Trainer, federation: Federation, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    layout = layout_module.ParameterLayout.from_shapes([("weight", (3,))])
    with (folder / MODEL_FILE).open("wb") as file:
        writer = VectorWriter(file, layout, {})
        writer.write(np.zeros(3, np.float32))
        writer.finish()
    with pytest.raises(UntrustedError, match="not those of this federation's model"):
        trained(trainer, plan_of(federation), folder)


def test_the_corpus_is_the_owners_alone(trainer: Trainer, home: NodeHome) -> None:
    assert trainer.corpus.folder.parent == home.folder / "corpus"
    for path in [trainer.corpus.folder, *trainer.corpus.folder.iterdir()]:
        assert not path.stat().st_mode & 0o077, path


def test_a_plan_of_longer_sequences_than_the_text_is_refused(
    trainer: Trainer, federation: Federation
) -> None:
    inner = INNER.model_copy(update={"sequence_tokens": 1_000_000})
    with pytest.raises(TapestryError, match="1,000,001"):
        trained(trainer, plan_of(federation, inner=inner), federation.newest)


def test_an_unknown_device_is_named(home: NodeHome, federation: Federation, text: Path) -> None:
    settings = NodeTable(device="loom")
    with pytest.raises(ConfigError, match="device 'loom' cannot be used"):
        Trainer(home, settings, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)


# The corpus, governed


def test_a_contribution_leaves_a_line_of_what_it_was_trained_on(
    trainer: Trainer, federation: Federation, home: NodeHome
) -> None:
    spooled = contributed(trainer, plan_of(federation), federation.newest)
    (entry,) = read_history(home.corpus)
    assert (entry["event"], entry["round"]) == ("contributed", 2)
    assert entry["root"] == spooled.contribution.root
    assert entry["corpus"] == trainer.corpus.digest
    (source,) = entry["sources"]
    assert source["tokens"] == spooled.contribution.tokens == 2 * 2 * TOKENS
    assert 1 <= source["documents"] <= 4 * 2  # four sequences, each shorter than a document
    assert trainer.use is not None
    assert (trainer.use.tokens, trainer.use.documents) == (source["tokens"], source["documents"])


def test_a_source_that_was_forgotten_is_in_no_later_round(
    home: NodeHome, federation: Federation, tmp_path: Path
) -> None:
    described = []
    for name, word in (("weft", "weft"), ("warp", "warp")):
        documents = [f"{number}. the {word} runs {word} by {word}" for number in range(30)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
        described.append(
            f'[[source]]\nname = "{name}"\npath = "../{name}.txt"\nlanguage = "eng"\n'
            'licence = "CC0-1.0"\njurisdiction = "FR"\ncategory = "open"\n'
        )
    filters = '[filters]\nduplicates = "exact"\nwrong_language = "keep"\n'
    (home.folder / "corpus.toml").write_text(filters + "".join(described), encoding="utf-8")
    settings = NodeTable(held_out_fraction=0.1, device="cpu")
    trainer = Trainer(home, settings, "causal-lm", federation.newest, [], sequence_tokens=TOKENS)
    before = trainer.corpus.folder
    inner = INNER.model_copy(update={"steps": 20})
    plan = plan_of(federation, inner=inner)
    contributed(trainer, plan, federation.newest)
    assert forget(home, "weft") == (1, [2])
    assert not before.exists()
    spooled = contributed(trainer, plan, federation.newest)
    history = read_history(home.corpus)
    assert [entry["event"] for entry in history] == ["contributed", "forgotten", "contributed"]
    assert [one["name"] for one in history[0]["sources"]] == ["warp", "weft"]
    assert [one["name"] for one in history[2]["sources"]] == ["warp"]
    assert history[2]["sources"][0]["tokens"] == spooled.contribution.tokens
    assert {part.source for part in trainer.corpus.parts} == {"warp"}
