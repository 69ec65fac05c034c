"""A round half trained: what a crash leaves, and how the next process goes on from it."""

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tapestry.checkpoints.statements import InnerSettings, RoundPlan
from tapestry.objectives.reports import StepReport
from tapestry.params.modules import from_model
from tapestry_node.forgetting import forget
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer
from tests.conftest import Federation

pytestmark = pytest.mark.usefixtures("threads_given_back")

TOKENS = 16
INNER = InnerSettings(
    steps=5, sequences=2, sequence_tokens=TOKENS, learning_rate=1e-3, warmup_steps=3, accumulation=2
)
AFTER_EVERY_STEP = NodeTable(held_out_fraction=0.1, device="cpu", save_every_minutes=1e-9)


class CrashError(Exception):
    """The process would be gone here."""


def node(folder: Path) -> NodeHome:
    made = NodeHome(folder)
    made.make_folders()
    return made


def new_trainer(
    home: NodeHome, federation: Federation, text: Path, settings: NodeTable = AFTER_EVERY_STEP
) -> Trainer:
    return Trainer(home, settings, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)


def plan_of(federation: Federation, **changes: object) -> RoundPlan:
    update = {"round": 2, "base": "b" * 64, "inner": INNER, **changes}
    return federation.closed.plan.model_copy(update=update)


def crash_at(step: int) -> object:
    def on_step(report: StepReport) -> bool:
        if report.step == step:
            raise CrashError
        return True

    return on_step


def crash(trainer: Trainer, plan: RoundPlan, checkpoint: Path, *, at: int) -> None:
    """Train until step `at`, which is taken and not kept."""
    with pytest.raises(CrashError):
        trainer.train_round(plan, checkpoint, previous_state=None, on_step=crash_at(at))  # type: ignore[arg-type]


def steps_taken(
    trainer: Trainer, plan: RoundPlan, checkpoint: Path
) -> tuple[list[int], list[float]]:
    seen: list[int] = []
    _optimizer, _base, losses = trainer.train_round(
        plan, checkpoint, previous_state=None, on_step=lambda r: seen.append(r.step) is None
    )
    return seen, losses


def test_a_round_that_goes_on_ends_with_the_bits_of_one_that_was_never_interrupted(
    tmp_path: Path, federation: Federation, text: Path
) -> None:
    straight = new_trainer(node(tmp_path / "straight"), federation, text)
    _seen, expected = steps_taken(straight, plan_of(federation), federation.newest)

    home = node(tmp_path / "crashed")
    crash(new_trainer(home, federation, text), plan_of(federation), federation.newest, at=4)
    assert home.unfinished.stat().st_mode & 0o777 == 0o600
    torch.manual_seed(99)  # another process
    restarted = new_trainer(home, federation, text)
    again = plan_of(federation, attempt=2, deadline=2e9, quorum=1)
    seen, losses = steps_taken(restarted, again, federation.newest)
    assert seen == [4, 5], "three steps were kept"
    assert losses == expected
    np.testing.assert_array_equal(
        from_model(restarted.module, restarted.layout), from_model(straight.module, straight.layout)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "c" * 64},
        {"round": 3},
        {"seed": 9},
        {"inner": INNER.model_copy(update={"beta2": 0.5})},
    ],
    ids=["another base", "another round", "another seed", "another beta2"],
)
def test_another_plan_begins_anew(
    tmp_path: Path, federation: Federation, text: Path, changes: dict[str, object]
) -> None:
    home = node(tmp_path / "node")
    crash(new_trainer(home, federation, text), plan_of(federation), federation.newest, at=3)
    trainer = new_trainer(home, federation, text)
    seen, _losses = steps_taken(trainer, plan_of(federation, **changes), federation.newest)
    assert seen == [1, 2, 3, 4, 5]


def test_text_that_was_taken_away_is_not_gone_on_with(
    tmp_path: Path, federation: Federation, text: Path
) -> None:
    home = node(tmp_path / "node")
    (text / "taken.txt").write_text("\n\n".join(f"secret {n} of the mill" for n in range(40)))
    crash(new_trainer(home, federation, text), plan_of(federation), federation.newest, at=3)
    (text / "taken.txt").unlink()
    trainer = new_trainer(home, federation, text)
    seen, _losses = steps_taken(trainer, plan_of(federation), federation.newest)
    assert seen == [1, 2, 3, 4, 5]


def test_a_damaged_file_is_removed_and_the_round_begins_anew(
    tmp_path: Path, federation: Federation, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = node(tmp_path / "node")
    crash(new_trainer(home, federation, text), plan_of(federation), federation.newest, at=3)
    whole = home.unfinished.read_bytes()
    home.unfinished.write_bytes(whole[: len(whole) // 2])
    quiet = AFTER_EVERY_STEP.model_copy(update={"save_every_minutes": 0.0})
    trainer = new_trainer(home, federation, text, quiet)
    seen, _losses = steps_taken(trainer, plan_of(federation), federation.newest)
    assert seen == [1, 2, 3, 4, 5]
    assert "damaged" in caplog.text
    assert not home.unfinished.exists()


def test_a_disk_that_takes_no_more_costs_the_file_and_not_the_round(
    tmp_path: Path, federation: Federation, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = node(tmp_path / "node")
    trainer = new_trainer(home, federation, text)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        seen, _losses = steps_taken(trainer, plan_of(federation), federation.newest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert seen == [1, 2, 3, 4, 5]
    assert "cannot be kept" in caplog.text
    assert not list((home.folder / "trainer").iterdir()), "nothing half-written"


def test_space_is_looked_at_first(tmp_path: Path) -> None:
    from tapestry.params.tensor_file import write_tensors  # noqa: PLC0415

    more = shutil.disk_usage(tmp_path).free
    huge = torch.empty(1, dtype=torch.uint8).expand(2 * more)  # one byte in memory
    with pytest.raises(OSError, match="are needed"):
        write_tensors(tmp_path / "huge", {"huge": huge}, {})
    assert not list(tmp_path.iterdir())


def test_an_end_by_request_keeps_the_last_step_only_if_it_is_asked_for(
    tmp_path: Path, federation: Federation, text: Path
) -> None:
    home = node(tmp_path / "node")
    hourly = AFTER_EVERY_STEP.model_copy(update={"save_every_minutes": 60.0})
    for keeps in (False, True):
        trainer = new_trainer(home, federation, text, hourly)
        begun = trainer.begin(plan_of(federation), federation.newest)
        begun.unfinished.keeps_last = keeps
        trainer.take_steps(begun, on_step=lambda report: report.step < 2)
        assert home.unfinished.exists() is keeps
    seen, _losses = steps_taken(
        new_trainer(home, federation, text, hourly), plan_of(federation), federation.newest
    )
    assert seen == [3, 4, 5]


def test_a_source_that_is_forgotten_takes_the_half_round_with_it(
    tmp_path: Path, federation: Federation, text: Path
) -> None:
    home = node(tmp_path / "node")
    trainer = new_trainer(home, federation, text)
    kept: list[bool] = []

    def on_step(report: StepReport) -> bool:
        kept.append(home.unfinished.exists())
        if report.step == 3:
            forget(home, text.name)
            assert not home.unfinished.exists(), "at once, and not when the round ends"
        return True

    trainer.train_round(
        plan_of(federation), federation.newest, previous_state=None, on_step=on_step
    )
    assert kept == [False, True, True, False, False], "nor is it written again"
    assert not home.unfinished.exists()
