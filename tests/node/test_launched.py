"""A trainer whose processes a launcher starts: real torchrun, two of it as if on two hosts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tapestry.errors import ConfigError, UnavailableError
from tapestry.objectives.places import Place
from tapestry_demo.federation import free_port_pair
from tapestry_node.launched import main, place_from, wait_for_guard
from tapestry_node.launching import Launching
from tapestry_node.policy import NodeTable
from tapestry_node.shared_line import SharedLine
from tapestry_node.trainer import Trainer
from tapestry_node.trainer_process import TrainerLostError, TrainerProcess
from tests.conftest import Federation
from tests.node.test_ranks import (
    COPIES,
    INNER,
    SAME,
    TOKENS,
    alone,
    from_model_of,
    node,
    plan_of,
    trained,
)

__all__ = ["alone"]  # a fixture

ENOUGH_SECONDS = 300.0
EXTERNAL = COPIES.model_copy(update={"launch": "external"})


ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def _by_torchrun(
    port: str, rank: int, size: int, command: list[str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "1"),
        *("--nnodes", str(size), "--node-rank", str(rank)),
        *("--master-addr", "127.0.0.1", "--master-port", port),
    ]
    return subprocess.Popen(
        [*torchrun, *command], stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT
    )


def _by_slurm(
    port: str, rank: int, size: int, command: list[str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a process as srun does on one of several hosts."""
    said = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": "0"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT | said | where
    )


class Site:
    """A guard's end, and launchers as if on several hosts, that start one process each."""

    def __init__(self, folder: Path, hosts: int, *, has_torchrun: bool) -> None:
        self.home = node(folder / "node")
        (self.home.identity.folder / "tls.key").write_text("secret")
        self.settings = EXTERNAL.model_copy(update={"processes": hosts})
        self.launching = Launching(self.home, self.settings)
        self.process = TrainerProcess(
            self.home, on_blocked=lambda _call, _to: None, launching=self.launching
        )
        self.logs = [(folder / f"host-{rank}").open("wb") for rank in range(hosts)]
        port = str(free_port_pair())
        start = _by_torchrun if has_torchrun else _by_slurm
        command = (sys.executable, "-m", "tapestry.cli.main", "node", "trainer")
        self.launchers = [
            start(port, rank, hosts, [*command, str(self.home.folder)], log)
            for rank, log in enumerate(self.logs)
        ]

    def open(self, federation: Federation, text: Path) -> None:
        """Have model and corpus made as soon as the processes are there."""
        deadline = time.monotonic() + ENOUGH_SECONDS
        while True:
            try:
                return self.open_once(federation, text)
            except TrainerLostError:
                raise
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def open_once(self, federation: Federation, text: Path) -> None:
        self.process.open(
            self.settings, "causal-lm", federation.newest, [text], sequence_tokens=TOKENS
        )

    def train_long(self, federation: Federation, do: Callable[[], None]) -> None:
        """Train for long, and do something after the first step."""
        steps: list[object] = []

        def on_step(step: object) -> bool:
            steps.append(step)
            if len(steps) == 1:
                do()
            return True

        inner = INNER.model_copy(update={"steps": 10_000})
        plan = plan_of(federation).model_copy(update={"inner": inner})
        self.process.train(plan, federation.newest, previous_state=None, on_step=on_step)

    def wait(self) -> list[int]:
        """Return how each launcher has ended."""
        return [one.wait(ENOUGH_SECONDS) for one in self.launchers]

    def stop(self) -> None:
        self.launching.end()
        for one in self.launchers:
            if one.poll() is None:
                one.terminate()
        self.wait()
        for log in self.logs:
            log.close()


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    hosts, launcher = request.param
    made = Site(tmp_path, hosts, has_torchrun=launcher == "torchrun")
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.parametrize("site", [(2, "torchrun")], indirect=True, ids=["torchrun"])
def test_two_hosts_give_the_update_of_one_process_and_end_with_the_guard(
    site: Site,
    alone: tuple[Trainer, list[float], np.ndarray],
    federation: Federation,
    text: Path,
    tmp_path: Path,
) -> None:
    trainer, losses, vector = alone
    site.open(federation, text)
    assert "a launcher has started it" in site.process.isolation
    assert trained(site.process, federation) == pytest.approx(losses, rel=1e-5)
    file = tmp_path / "fragments"
    file.touch()
    made = site.process.write(file, on_fragment=lambda _index: None)
    assert (made.steps, made.tokens) == (3, 3 * 3 * 16)
    delta = np.fromfile(file, "<f4")
    assert np.abs(delta).max() > 1e-3, "it has trained"
    np.testing.assert_allclose(delta, from_model_of(trainer, federation) - vector, **SAME)
    site.launching.end()
    assert site.wait() == [0, 0], (tmp_path / "host-0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("site", [(2, "srun")], indirect=True, ids=["srun"])
def test_a_process_of_another_host_that_is_killed_ends_the_trainer_with_a_message(
    site: Site, federation: Federation, text: Path
) -> None:
    site.open(federation, text)
    with pytest.raises(TrainerLostError, match=r"training together failed|process 1 of 2|ended"):
        site.train_long(federation, site.launchers[1].kill)
    site.process.stop()
    assert site.wait() == [1, -signal.SIGKILL], "who starts them knows that it went wrong"


@pytest.mark.slow
@pytest.mark.parametrize("site", [(1, "srun")], indirect=True, ids=["srun"])
def test_ctrl_c_at_the_launcher_keeps_the_round_as_it_stands(
    site: Site, federation: Federation, text: Path
) -> None:
    site.open(federation, text)
    with pytest.raises(TrainerLostError):
        site.train_long(federation, lambda: site.launchers[0].send_signal(signal.SIGINT))
    assert site.home.unfinished.is_file()
    site.process.stop()
    assert site.wait() == [1]
    with pytest.raises(UnavailableError, match="have a launcher start"):
        site.open_once(federation, text)


def test_a_launcher_that_says_nothing_or_what_cannot_be_is_told_so() -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 4 --no-python"):
        place_from({})
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set"):
        place_from(torchrun)
    meeting = {"MASTER_ADDR": "host-1", "MASTER_PORT": "29500"}
    assert place_from(torchrun | meeting) == Place(rank=3, size=4, local_rank=1, local_size=2)
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"} | meeting
    assert place_from(slurm) == Place(rank=5, size=8, local_rank=1, local_size=2)
    with pytest.raises(ConfigError, match="RANK = 4 and WORLD_SIZE = 4 cannot be"):
        place_from(torchrun | meeting | {"RANK": "4"})
    with pytest.raises(ConfigError, match="a number is expected"):
        place_from(torchrun | meeting | {"RANK": "first"})


def test_a_folder_that_is_not_shared_another_nodes_job_and_another_number_of_processes(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="no node's folder is seen here"):
        main(tmp_path / "elsewhere", Place())
    home = node(tmp_path / "node")
    launching = Launching(home, EXTERNAL)
    with pytest.raises(ConfigError, match=r"started 3 process\(es\), and the guard was told of 2"):
        wait_for_guard(home.folder, Place.of(0, 3))
    other = node(tmp_path / "other")
    home.launched.rename(other.launched)
    with pytest.raises(ConfigError, match="this is another node's job"):
        wait_for_guard(other.folder, Place.of(0, 2))
    launching.end()


def test_a_guard_waits_for_the_launcher_and_says_what_to_start(tmp_path: Path) -> None:
    home = node(tmp_path / "node")
    launching = Launching(home, EXTERNAL)
    with pytest.raises(UnavailableError, match=f"start `tapestry node trainer {home.folder}`"):
        launching.line()
    assert wait_for_guard(home.folder, Place.of(0, 2)).processes == 2, "it lives: it says so"
    launching.end()


def test_two_ends_over_files_hear_each_other_across_files_and_at_the_end(tmp_path: Path) -> None:
    guard = SharedLine(tmp_path, own="guard", other="trainer")
    trainer = SharedLine(tmp_path, own="trainer", other="guard")
    assert not guard.has_more()
    text = "x" * 1_000_000
    for number in range(9):  # more than one file's worth
        trainer.send("log", text=text, number=number)
    assert [guard.receive()["number"] for _ in range(9)] == list(range(9))
    assert len(list(tmp_path.glob("trainer-*"))) == 1, "what was read is removed"
    guard.send("stop", keep=True)
    assert trainer.has_more()
    assert trainer.receive() == {"kind": "stop", "keep": True}
    guard.close()
    with pytest.raises(EOFError):
        trainer.receive()
    assert trainer.was_ended
    trainer.close(goes_on=True)
    with pytest.raises(EOFError):
        guard.receive()
    assert not guard.was_ended


def test_an_end_that_says_nothing_for_long_is_gone_and_a_link_in_its_place_is_not_followed(
    tmp_path: Path,
) -> None:
    waiting = SharedLine(tmp_path, own="guard", other="trainer", silent_seconds=0.01)
    with pytest.raises(EOFError, match="gone"):
        waiting.receive()
    waiting.close()
    (tmp_path / "first-000000.jsonl").symlink_to(tmp_path / "node.toml")
    with pytest.raises(FileExistsError):
        SharedLine(tmp_path, own="first", other="rank")
    assert not (tmp_path / "node.toml").exists()
    assert NodeTable().launch == "own"
