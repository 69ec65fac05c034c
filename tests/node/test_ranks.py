"""Two processes that train one model, against one: the same update, the same state on the disk."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.statements import InnerSettings, RoundPlan
from tapestry.params.modules import from_model
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer
from tapestry_node.trainer_process import OutOfMemoryError, TrainerProcess
from tests.conftest import Federation

pytestmark = pytest.mark.slow

TOKENS = 16
INNER = InnerSettings(
    steps=3, sequences=3, sequence_tokens=TOKENS, learning_rate=1e-3, warmup_steps=3
)
ONE = NodeTable(held_out_fraction=0.1, device="cpu", threads=1)
COPIES = ONE.model_copy(update={"processes": 2})
SHARDED = COPIES.model_copy(update={"sharding": "on"})
SAME = {"rtol": 1e-3, "atol": 2e-6}
"""Of parameters that three steps of 1e-3 have changed."""


def node(folder: Path) -> NodeHome:
    made = NodeHome(folder)
    made.make_folders()
    made.identity.folder.mkdir()
    return made


def plan_of(federation: Federation, number: int = 2) -> RoundPlan:
    update = {"round": number, "base": "b" * 64, "inner": INNER, "codec": "float32"}
    return federation.closed.plan.model_copy(update=update)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, federation: Federation, text: Path
) -> tuple[Trainer, list[float], np.ndarray]:
    """One process after a round: itself, its losses, its parameters; its state is on the disk."""
    home = node(tmp_path_factory.mktemp("alone"))
    trainer = Trainer(home, ONE, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)
    optimizer, _base, losses = trainer.train_round(
        plan_of(federation), federation.newest, previous_state=None, on_step=lambda _report: True
    )
    optimizer.save(home.trainer_state(2))
    return trainer, losses, from_model(trainer.module, trainer.layout)


@pytest.fixture(scope="module", params=[COPIES, SHARDED], ids=["copies", "sharded"])
def two(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    federation: Federation,
    text: Path,
) -> Iterator[tuple[TrainerProcess, NodeHome]]:
    """A trainer of two processes."""
    home = node(tmp_path_factory.mktemp("two"))
    process = TrainerProcess(home, on_blocked=lambda _call, _to: None)
    process.open(request.param, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)
    yield process, home
    process.stop()


def trained(
    process: TrainerProcess,
    federation: Federation,
    *,
    number: int = 2,
    previous: Path | None = None,
) -> list[float]:
    losses: list[float] = []
    process.train(
        plan_of(federation, number),
        federation.newest,
        previous_state=previous,
        on_step=lambda step: losses.append(step.loss) is None,
    )
    return losses


def test_two_processes_give_the_update_of_one_and_their_state_is_that_of_one(
    two: tuple[TrainerProcess, NodeHome],
    alone: tuple[Trainer, list[float], np.ndarray],
    federation: Federation,
    tmp_path: Path,
) -> None:
    process, home = two
    trainer, losses, vector = alone
    measured = process.measure(federation.newest)
    assert measured.bits == pytest.approx(trainer.evaluate(federation.newest).bits, rel=1e-6)

    assert trained(process, federation) == pytest.approx(losses, rel=1e-5)
    file = tmp_path / "fragments"
    file.touch()
    made = process.write(file, on_fragment=lambda _index: None)
    assert (made.steps, made.tokens) == (3, 3 * 3 * 16)
    delta = np.fromfile(file, "<f4")
    base = from_model_of(trainer, federation)
    assert np.abs(delta).max() > 1e-3, "it has trained"
    np.testing.assert_allclose(delta, base - vector, **SAME)

    theirs, ours = home.trainer_state(2), trainer.home.trainer_state(2)
    assert theirs.stat().st_mode & 0o777 == 0o600
    expected = one_goes_on(trainer, federation, ours)
    assert one_goes_on(trainer, federation, theirs) == pytest.approx(expected, rel=1e-5)
    assert trained(process, federation, number=3, previous=ours) == pytest.approx(
        expected, rel=1e-5
    )


def from_model_of(trainer: Trainer, federation: Federation) -> np.ndarray:
    """Return the base's vector."""
    trainer.load(federation.newest)
    return from_model(trainer.module, trainer.layout)


def one_goes_on(trainer: Trainer, federation: Federation, state: Path) -> list[float]:
    """Return the losses of round 3 in one process, from a state."""
    _optimizer, _base, losses = trainer.train_round(
        plan_of(federation, 3), federation.newest, previous_state=state, on_step=lambda _r: True
    )
    return losses


def test_a_process_that_dies_ends_the_trainer_with_a_message(
    tmp_path: Path, federation: Federation, text: Path
) -> None:
    process = TrainerProcess(node(tmp_path / "node"), on_blocked=lambda _call, _to: None)
    process.open(COPIES, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (child,) = map(int, children)

    def kill(_step: object) -> bool:
        os.kill(child, signal.SIGKILL)
        return True

    long = plan_of(federation).model_copy(
        update={"inner": INNER.model_copy(update={"steps": 10_000})}
    )
    with pytest.raises(OutOfMemoryError, match="process 1 of 2 of the trainer: was killed"):
        process.train(long, federation.newest, previous_state=None, on_step=kill)
    process.stop()
