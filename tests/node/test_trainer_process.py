"""The trainer in its own process: the same bytes as in ours, and a death that is no disaster."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import InnerSettings, RoundPlan
from tapestry.errors import ConfigError, RejectedError
from tapestry.objectives.reports import StepReport
from tapestry_node import trainer_process
from tapestry_node.guard import sealed
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable, Policy
from tapestry_node.spool import Spooled
from tapestry_node.trainer import Trainer
from tapestry_node.trainer_process import OutOfMemoryError, TrainerLostError, TrainerProcess
from tests.conftest import Federation

pytestmark = pytest.mark.slow

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
TOKENS = 16
INNER = InnerSettings(
    steps=2, sequences=4, sequence_tokens=TOKENS, learning_rate=1e-3, warmup_steps=3
)
SETTINGS = NodeTable(held_out_fraction=0.1, device="cpu", threads=1)


def nobody_told(_call: str, _to: str) -> None:
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> NodeHome:
    made = NodeHome(tmp_path_factory.mktemp("node"))
    made.make_folders()
    made.identity.folder.mkdir()
    (made.identity.folder / "tls.key").write_text("secret")
    return made


@pytest.fixture(scope="module")
def process(home: NodeHome) -> Iterator[TrainerProcess]:
    os.environ["VAULT_ADDRESS"] = "not the trainer's"
    made = TrainerProcess(home, on_blocked=nobody_told)
    del os.environ["VAULT_ADDRESS"]
    yield made
    made.stop()


def plan_of(federation: Federation, **changes: object) -> RoundPlan:
    update = {"round": 2, "base": "b" * 64, "inner": INNER, "codec": "float32", **changes}
    return federation.closed.plan.model_copy(update=update)


def opened(process: TrainerProcess, federation: Federation, text: Path) -> None:
    process.open(SETTINGS, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS)


def seal(home: NodeHome, plan: RoundPlan, write: object, layout: object) -> Spooled:
    return sealed(
        home,
        plan,
        write,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        policy=Policy(),
        member_id="fr-bnf",
        key=KEY,
        seconds=1.25,
    )


def test_it_trains_and_measures_as_the_same_code_does_in_this_process(
    process: TrainerProcess,
    home: NodeHome,
    federation: Federation,
    text: Path,
    tmp_path: Path,
) -> None:
    opened(process, federation, text)
    own_home = NodeHome(tmp_path / "own")
    own_home.make_folders()
    own = Trainer(
        own_home, SETTINGS, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS
    )
    measured, expected = process.measure(federation.newest), own.evaluate(federation.newest)
    assert (measured.bits, measured.text_bytes) == (expected.bits, expected.text_bytes)

    plan = plan_of(federation)
    seen: list[StepReport] = []
    steps, first, last = process.train(
        plan, federation.newest, previous_state=None, on_step=lambda s: seen.append(s) is None
    )
    optimizer, base, losses = own.train_round(
        plan, federation.newest, previous_state=None, on_step=lambda _report: True
    )
    assert (steps, first, last) == (2, losses[0], losses[1])
    assert [step.loss for step in seen] == losses
    theirs = seal(home, plan, lambda f, look: process.write(f, on_fragment=look), own.layout)
    ours = seal(
        own_home,
        plan,
        lambda f, look: own.write(plan, base, optimizer, losses, f, on_fragment=look),
        own.layout,
    )
    assert theirs.contribution == ours.contribution


def test_fewer_sequences_at_a_time_give_the_same_step(
    process: TrainerProcess, federation: Federation, text: Path
) -> None:
    opened(process, federation, text)
    losses = [
        process.train(
            plan_of(federation),
            federation.newest,
            previous_state=None,
            on_step=lambda _step: True,
            rows=rows,
        )
        for rows in (0, 1)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_it_stops_when_it_is_told_to(
    process: TrainerProcess, federation: Federation, text: Path
) -> None:
    opened(process, federation, text)
    plan = plan_of(federation, inner=INNER.model_copy(update={"steps": 500}))
    steps, _first, _last = process.train(
        plan, federation.newest, previous_state=None, on_step=lambda step: step.step < 3
    )
    assert 3 <= steps < 500


def test_its_refusals_are_ours(process: TrainerProcess, federation: Federation, text: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.txt"):
        process.open(
            SETTINGS,
            "causal-lm",
            federation.newest,
            [text / "no-such.txt"],
            sequence_tokens=TOKENS,
        )
    opened(process, federation, text)
    plan = plan_of(federation, inner=INNER.model_copy(update={"sequence_tokens": 5000}))
    with pytest.raises(RejectedError, match="does not fit this node's text"):
        process.train(plan, federation.newest, previous_state=None, on_step=lambda _step: True)


def test_it_has_neither_the_keys_nor_what_else_the_guard_was_started_with(
    process: TrainerProcess, home: NodeHome
) -> None:
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"VAULT" not in environment
    root = Path(f"/proc/{process.pid}/root")
    if process.isolation:
        pytest.skip(f"this kernel does not hide files from it: {process.isolation}")
    seen = root / str(home.identity.folder).lstrip("/")
    assert list(seen.iterdir()) == []
    assert (home.identity.folder / "tls.key").read_text() == "secret"
    inside = root / str(home.folder).lstrip("/")
    mounts = Path(f"/proc/{process.pid}/mounts").read_text(encoding="utf-8").splitlines()
    rights = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts}
    assert rights[str(home.folder)] == "ro", "ledger, policy and approvals can only be read"
    assert {rights[str(home.folder / name)] for name in ("corpus", "trainer", "spool")} == {"rw"}
    assert (inside / "spool").is_dir()
    files = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}  # noqa: PTH115
    assert not [name for name in files if "identity" in name]
    assert len([name for name in files if name.startswith("socket:")]) == 1


def test_a_killed_trainer_counts_as_one_that_took_too_much_memory(
    home: NodeHome, federation: Federation, text: Path
) -> None:
    process = TrainerProcess(home, on_blocked=nobody_told)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(OutOfMemoryError, match="was killed"):
        opened(process, federation, text)
    process.stop()


_HUNGRY = """
import torch
from tapestry.objectives.causal_lm import CausalLM


class Hungry(CausalLM):
    name = "hungry"

    def loss(self, module, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return super().loss(module, batch)
"""


def test_what_does_not_fit_in_memory_does_with_fewer_sequences_at_a_time(
    federation: Federation, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "hungry-1.dist-info").mkdir(parents=True)
    (site / "hungry.py").write_text(_HUNGRY)
    (site / "hungry-1.dist-info" / "METADATA").write_text("Name: hungry\nVersion: 1\n")
    (site / "hungry-1.dist-info" / "entry_points.txt").write_text(
        "[tapestry.objectives]\nhungry = hungry:Hungry\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    home.identity.folder.mkdir()
    process = TrainerProcess(home, on_blocked=nobody_told)
    process.open(SETTINGS, "hungry", federation.newest, [text], sequence_tokens=TOKENS)

    def train(rows: int) -> tuple[int, float, float]:
        return process.train(
            plan_of(federation),
            federation.newest,
            previous_state=None,
            on_step=lambda _step: True,
            rows=rows,
        )

    with pytest.raises(OutOfMemoryError, match="tried to allocate"):
        train(0)
    assert train(2)[0] == INNER.steps
    process.stop()


def test_one_that_is_gone_before_it_was_spoken_to_is_lost_like_any_other(
    home: NodeHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(_theirs: object) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(["false"])
        process.wait()
        return process

    monkeypatch.setattr(trainer_process, "_start", gone)
    process = TrainerProcess(home, on_blocked=nobody_told)
    with pytest.raises(TrainerLostError, match="the trainer's process ended with code 1"):
        process.measure(tmp_path)
    process.stop()
