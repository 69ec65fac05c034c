"""A node that trains a part of the model: what that part costs, and what goes on after a crash."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tapestry.checkpoints.statements import InnerSettings, RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.objectives.objective import objective_named
from tapestry.params.modules import from_model
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer
from tapestry_node.trainer_process import TrainerProcess
from tests.conftest import FOUNDED_AT, settings_for

pytestmark = pytest.mark.usefixtures("threads_given_back")

TOKENS = 16
PATTERNS = ("model.layers.3.*", "model.norm.weight")
INNER = InnerSettings(
    steps=3, sequences=2, sequence_tokens=TOKENS, learning_rate=1e-2, warmup_steps=0
)


@pytest.fixture(scope="module")
def genesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first checkpoint of a federation that trains the last layer."""
    folder = tmp_path_factory.mktemp("subset") / "coordinator"
    founding = Founding(
        federation="loom",
        objective=objective_named("causal-lm"),
        create={"size": "tiny"},
        pool=[],
        seed=1,
        trainable=PATTERNS,
    )
    found(folder, founding, settings_for, now=FOUNDED_AT)
    return CoordinatorHome(folder).checkpoint(0)


@pytest.fixture
def trainer(tmp_path: Path, genesis: Path, text: Path) -> Trainer:
    return new_trainer(tmp_path / "node", genesis, text)


def new_trainer(folder: Path, genesis: Path, text: Path) -> Trainer:
    home = NodeHome(folder)
    home.make_folders()
    settings = NodeTable(held_out_fraction=0.1, device="cpu", save_every_minutes=1e-9)
    return Trainer(home, settings, "causal-lm", genesis, [text], sequence_tokens=TOKENS)


def plan() -> RoundPlan:
    return RoundPlan(
        genesis="0" * 64, round=1, attempt=1, base="b" * 64, layout="0" * 64, policy="0" * 64,
        cohort=("a",), quorum=1, grace_seconds=0.0, deadline=1e12, objective="causal-lm",
        inner=INNER, codec="float32", max_element=10.0, seed=1,
    )  # fmt: skip


def test_the_rest_takes_no_gradients_no_moments_and_does_not_move(
    trainer: Trainer, genesis: Path
) -> None:
    begun = trainer.begin(plan(), genesis)
    before = {name: t.detach().clone() for name, t in trainer.module.named_parameters()}
    batch = torch.from_numpy(begun.batches.batch(0))
    trainer.objective.loss(trainer.module, batch).backward()
    graded = {n for n, p in trainer.module.named_parameters() if p.grad is not None}
    trainer.module.zero_grad(set_to_none=True)
    losses = trainer.take_steps(begun)
    assert losses[-1] < losses[0]
    in_vector = {spec.name for spec in trainer.layout.tensors}
    moved = {n for n, p in trainer.module.named_parameters() if not torch.equal(p, before[n])}
    moments = {name.rsplit("|", 1)[0] for name in begun.optimizer.tensors()}
    assert graded == moved == moments == in_vector
    assert 0 < trainer.layout.elements < trainer.model_elements / 3


def test_a_round_half_trained_is_kept_without_the_rest_and_goes_on(
    trainer: Trainer, genesis: Path, tmp_path: Path, text: Path
) -> None:
    begun = trainer.begin(plan(), genesis)
    trainer.take_steps(begun, on_step=lambda report: report.step < 2)
    begun.unfinished.keep([1.0, 1.0])
    kept = trainer.home.unfinished
    with safe_open(kept, framework="pt") as file:
        models = {n.removeprefix("model/") for n in file.keys() if n.startswith("model/")}  # noqa: SIM118
    assert models == {spec.name for spec in trainer.layout.tensors}
    again = new_trainer(tmp_path / "node", genesis, text)
    assert again.begin(plan(), genesis).done.losses == (1.0, 1.0)
    for (name, one), (_name, other) in zip(
        trainer.module.named_parameters(), again.module.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_contribution_is_as_long_as_the_part(trainer: Trainer, genesis: Path) -> None:
    begun = trainer.begin(plan(), genesis)
    losses = trainer.take_steps(begun)
    target = trainer.home.folder / "spool" / "fragments"
    target.parent.mkdir(exist_ok=True)
    target.touch()
    trainer.write(plan(), begun.base, begun.optimizer, losses, target)
    opened = open_vector_file(genesis / MODEL_FILE)
    assert target.stat().st_size == 4 * opened.layout.elements


@pytest.mark.slow
def test_two_processes_that_share_the_model_train_the_part_as_one_does(
    trainer: Trainer, genesis: Path, tmp_path: Path, text: Path
) -> None:
    begun = trainer.begin(plan(), genesis)
    losses = trainer.take_steps(begun)
    expected = begun.base.vector - from_model(trainer.module, trainer.layout)
    home = NodeHome(tmp_path / "two")
    home.make_folders()
    home.identity.folder.mkdir()
    process = TrainerProcess(home, on_blocked=lambda _call, _to: None)
    settings = NodeTable(held_out_fraction=0.1, device="cpu", threads=1, processes=2, sharding="on")
    process.open(settings, "causal-lm", genesis, [text], sequence_tokens=TOKENS)
    theirs: list[float] = []
    process.train(
        plan(),
        genesis,
        previous_state=None,
        on_step=lambda step: theirs.append(step.loss) is None,
    )
    target = tmp_path / "fragments"
    target.touch()
    process.write(target, on_fragment=lambda _index: None)
    process.stop()
    assert theirs == pytest.approx(losses, rel=1e-5)
    delta = np.fromfile(target, "<f4")
    assert np.linalg.norm(delta - expected) < 1e-4 * np.linalg.norm(expected)
