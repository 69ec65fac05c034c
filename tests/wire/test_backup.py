"""Backups of a coordinator at work, and what becomes of them elsewhere."""

import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, UnavailableError, UntrustedError
from tapestry.storage.locks import alone
from tapestry_coordinator.backup import back_up
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.restoring import restore
from tests.coordinator.small import Small
from tests.wire.serving import Coordinator, Line, Member

DELTA = np.float32([0.5, -0.25])


class Federation:
    """Two members at one coordinator, whose rounds the test drives."""

    def __init__(self, coordinator: Coordinator, stack: ExitStack) -> None:
        self.coordinator = coordinator
        self.members = {name: coordinator.join(name) for name in ("a", "b")}
        self.lines = self.connect(coordinator, stack)

    def connect(self, coordinator: Coordinator, stack: ExitStack) -> dict[str, Line]:
        """Connect the members to this coordinator, or to one that has taken its place."""
        return {
            name: stack.enter_context(member.connected(coordinator))
            for name, member in self.members.items()
        }

    def open(self) -> RoundPlan:
        """Open the next round."""
        watches = [line.watch() for line in self.lines.values()]
        plan = watches[0].until_plan()
        for watch in watches:
            watch.end()
        return plan

    def round(self) -> None:
        """A whole round."""
        plan = self.open()
        for line in self.lines.values():
            line.commit(line.sent(plan, DELTA))
        self.coordinator.aggregate()


@pytest.fixture
def federation(coordinator: Coordinator) -> Iterator[Federation]:
    with ExitStack() as stack:
        stack.callback(coordinator.store.close)
        yield Federation(coordinator, stack)


def saved(coordinator: Coordinator, tmp_path: Path) -> Path:
    """A backup of the coordinator."""
    path = tmp_path / "fed.tar"
    back_up(coordinator.home, path, now=coordinator.clock.now)
    return path


def test_a_federation_saved_in_mid_round_goes_on_elsewhere_to_the_same_checkpoint(
    federation: Federation, tmp_path: Path
) -> None:
    coordinator = federation.coordinator
    federation.round()
    plan = federation.open()
    last = federation.lines["b"].sent(plan, -DELTA)  # not acknowledged: not in the backup
    receipt = federation.lines["a"].commit(federation.lines["a"].sent(plan, DELTA))
    path = saved(coordinator, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    federation.lines["b"].commit(last)
    here = Manifest.parsed(coordinator.aggregate().payload, what="manifest")

    folder = tmp_path / "elsewhere"
    inventory = restore(path, folder)
    assert inventory.newest_checkpoint == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "ca/root.key").stat().st_mode & 0o777 == 0o600
    with ExitStack() as stack:
        elsewhere = Coordinator(Small(CoordinatorHome(folder)), clock=coordinator.clock)
        stack.callback(elsewhere.stop)
        lines = federation.connect(elsewhere, stack)
        assert lines["b"].watch().until_plan() == plan
        assert lines["a"].open_upload(plan, []).receipt.payload == receipt.payload
        lines["b"].commit(lines["b"].sent(plan, -DELTA))
        there = Manifest.parsed(elsewhere.aggregate().payload, what="manifest")
    assert there == here
    verify_checkpoint(folder / "published/round-000002")


@pytest.mark.slow
def test_backups_hold_together_however_rounds_go_on_meanwhile(
    federation: Federation, tmp_path: Path
) -> None:
    coordinator, stop = federation.coordinator, threading.Event()
    federation.round()

    def go_on() -> None:
        while not stop.is_set():
            federation.round()
            newest = coordinator.registry.newest_round() or 0
            coordinator.store.prune(before=newest)
            coordinator.home.spare_states.retire([coordinator.home.outer_state(newest - 1)])
            for number in range(1, newest):
                shutil.rmtree(coordinator.home.checkpoint(number), ignore_errors=True)

    rounds = threading.Thread(target=go_on)
    rounds.start()
    newest = []
    try:
        for number in range(5):
            path = saved(coordinator, tmp_path)
            inventory = restore(path, tmp_path / f"restored-{number}")
            newest.append(inventory.newest_checkpoint)
    finally:
        stop.set()
        rounds.join()
    assert newest == sorted(newest)
    assert newest[-1] > newest[0]
    assert not (coordinator.home.folder / ".backup/files").exists()


def test_a_backup_that_fails_leaves_nothing(federation: Federation, tmp_path: Path) -> None:
    home = federation.coordinator.home
    federation.round()
    model = home.checkpoint(1) / "model.safetensors"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(UnavailableError, match=r"round-000001/model\.safetensors: damaged"):
        saved(federation.coordinator, tmp_path)
    assert not (tmp_path / "fed.tar").exists()
    assert not list(tmp_path.glob(".*"))
    assert not (home.folder / ".backup/files").exists()


def test_one_backup_at_a_time_and_what_a_killed_one_left_is_removed(
    federation: Federation, tmp_path: Path
) -> None:
    home = federation.coordinator.home
    left = home.folder / ".backup/files/published"
    left.mkdir(parents=True)
    (left / "left.txt").write_text("left")
    with (
        alone(home.folder / ".backup", who="a backup"),
        pytest.raises(ConfigError, match="a backup runs already in another process"),
    ):
        saved(federation.coordinator, tmp_path)
    with tarfile.open(saved(federation.coordinator, tmp_path)) as tar:
        names = tar.getnames()
    assert "published/left.txt" not in names
    assert names[-1] == "backup.json"


Change = Callable[[dict[str, bytes]], object]


def changed(path: Path, change: Change, *, links: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """A copy of a backup with other content."""
    with tarfile.open(path) as tar:
        files = {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}
    change(files)
    target = path.with_name("changed.tar")
    with tarfile.open(target, "w") as tar:
        for link in links:
            tar.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return target


def flip(name: str) -> Change:
    """Change the last byte of a file."""

    def change(files: dict[str, bytes]) -> None:
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])

    return change


def renamed(old: str, new: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        inventory = files.pop("backup.json")
        files[new] = files.pop(old)
        files["backup.json"] = inventory

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (flip("contributions/round-000002/a.contribution"), "a.contribution is not what was"),
        (flip("published/round-000001/model.safetensors"), "model.safetensors is not what was"),
        (flip("coordinator.db"), "coordinator.db is not what was written"),
        (lambda files: files.pop("outer/round-000001.f32"), "round-000001.f32 is not what was"),
        (lambda files: files.pop("backup.json"), "its end is missing"),
        (renamed("policy.toml", "../policy.toml"), "holds '../policy.toml'"),
        (renamed("policy.toml", "/etc/policy.toml"), "holds '/etc/policy.toml'"),
        (renamed("ca/root.key", "ca/../../root.key"), "holds 'ca/../../root.key'"),
        (renamed("policy.toml", "evil.py"), "holds 'evil.py'"),
    ],
)
def test_a_backup_that_is_not_what_was_written_makes_no_folder(
    federation: Federation, tmp_path: Path, change: Change, says: str
) -> None:
    federation.round()
    plan = federation.open()
    federation.lines["a"].commit(federation.lines["a"].sent(plan, DELTA))
    path = changed(saved(federation.coordinator, tmp_path), change)
    with pytest.raises(UntrustedError, match=says):
        restore(path, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert not list(tmp_path.glob(".elsewhere*"))


def test_what_was_changed_together_with_the_inventory_fails_its_signature(
    federation: Federation, tmp_path: Path
) -> None:
    federation.round()
    path = saved(federation.coordinator, tmp_path)
    name = "published/round-000001/tapestry/manifest.json"

    def change(files: dict[str, bytes]) -> None:
        files[name] = files["published/round-000000/tapestry/manifest.json"]
        inventory = json.loads(files.pop("backup.json"))
        for entry in inventory["files"]:
            if entry["name"] == name:
                entry["size_bytes"] = len(files[name])
                entry["digest"] = hashlib.sha256(files[name]).hexdigest()
        files["backup.json"] = json.dumps(inventory).encode()

    with pytest.raises(UntrustedError, match=r"is the manifest of round 0|a link is missing"):
        restore(changed(path, change), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_links_in_a_backup_are_refused(federation: Federation, tmp_path: Path) -> None:
    path = saved(federation.coordinator, tmp_path)
    link = tarfile.TarInfo("ca/root.crt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(UntrustedError, match=r"holds 'ca/root\.crt'"):
        restore(changed(path, lambda _: None, links=(link,)), tmp_path / "elsewhere")


def test_a_backup_cut_short_is_none(federation: Federation, tmp_path: Path) -> None:
    path = saved(federation.coordinator, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UntrustedError, match="no whole backup"):
        restore(path, tmp_path / "elsewhere")
    path.write_bytes(b"no tar at all")
    with pytest.raises(UntrustedError, match="no whole backup"):
        restore(path, tmp_path / "elsewhere")


def test_a_folder_that_is_taken_is_left_alone(federation: Federation, tmp_path: Path) -> None:
    path = saved(federation.coordinator, tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        restore(path, taken)
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="no such file"):
        restore(tmp_path / "nothing.tar", tmp_path / "elsewhere")


def test_a_member_of_the_backup_is_one_of_the_restored_federation(
    federation: Federation, tmp_path: Path
) -> None:
    path = saved(federation.coordinator, tmp_path)
    restore(path, tmp_path / "elsewhere")
    elsewhere = Coordinator(Small(CoordinatorHome(tmp_path / "elsewhere")))
    try:
        member: Member = federation.members["a"]
        with member.connected(elsewhere) as line:
            line.describe()
    finally:
        elsewhere.stop()
