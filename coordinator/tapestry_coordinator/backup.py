"""One file that holds all a coordinator needs to go on elsewhere; made while it runs.

```
coordinator.db                     a copy as of one moment
coordinator.toml policy.toml pool.txt ca/ identity/ notes/
published/round-000000             genesis
published/round-NNNNNN             the newest checkpoint of that moment
outer/round-NNNNNN.f32             the outer optimizer's state after it
contributions/round-MMMMMM         what the open round has received and acknowledged
backup.json                        last: every file's size and SHA-256
```

The copy of the database decides which files belong to it. They get second names at once, which
keeps their content whatever the coordinator does afterwards (`tapestry.storage.spares`); should one
be gone already, everything begins anew with a newer copy.
"""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import make_url

from tapestry.checkpoints.folder import CARD_FILE, folder_name, read_envelope
from tapestry.checkpoints.manifest import Card, Manifest
from tapestry.checkpoints.policy import POLICY_FILE
from tapestry.checkpoints.verify import require_card_files
from tapestry.errors import ConfigError, UnavailableError, UntrustedError
from tapestry.storage.atomic import replacing
from tapestry.storage.locks import alone
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import SETTINGS_FILE

INVENTORY = "backup.json"
DATABASE = "coordinator.db"
FORM = 1
SINGLE_FILES = (SETTINGS_FILE, POLICY_FILE, "pool.txt")
FOLDERS = ("ca", "identity", "notes")
_ATTEMPTS = 10
_WORKPLACE = ".backup"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFile:
    """One file of a backup."""

    name: str
    size_bytes: int
    digest: str
    """Hex SHA-256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a backup holds."""

    form: int
    federation: str
    """The identity: the genesis manifest's digest."""
    created_at: float
    newest_checkpoint: int
    files: tuple[SavedFile, ...]

    def to_json(self) -> bytes:
        """Return it for storage."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Files with second names, as of one moment."""

    folder: Path
    newest: int
    manifests: dict[int, Manifest]
    """Of the checkpoints in it."""

    def paths(self) -> list[Path]:
        """Return all files."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def back_up(
    home: CoordinatorHome,
    target: Path,
    *,
    now: float,
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None,
) -> Inventory:
    """Write a backup; the file appears whole or not at all, readable by its owner only.

    Args:
        home: Of a coordinator that may be running.
        target: The new file; one that is there is replaced.
        now: Unix seconds.
        on_bytes: Told how many bytes are written of how many.

    Raises:
        ConfigError: The database is none that can be copied so.
        UnavailableError: A file on this disk is damaged.
        OSError: The disk is full; nothing is left behind.
    """
    with (
        _moment(home) as moment,
        replacing(target, mode=0o600) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        files = _write(moment, archive, on_bytes)
        _require_as_signed(moment, files)
        inventory = Inventory(
            form=FORM,
            federation=home.load_genesis().genesis_digest,
            created_at=now,
            newest_checkpoint=moment.newest,
            files=tuple(files),
        )
        data = inventory.to_json()
        archive.addfile(_member(INVENTORY, len(data)), io.BytesIO(data))
    return inventory


def _write(
    moment: Moment, archive: tarfile.TarFile, on_bytes: Callable[[int, int], None]
) -> list[SavedFile]:
    """Write every file of a moment; return what was written."""
    paths, done = moment.paths(), 0
    total = sum(path.stat().st_size for path in paths)

    def read(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, total)

    files = []
    for path in paths:
        name, size = path.relative_to(moment.folder).as_posix(), path.stat().st_size
        with path.open("rb") as source:
            reader = _Hashing(source, read)
            archive.addfile(_member(name, size), reader)
        files.append(SavedFile(name=name, size_bytes=size, digest=reader.hexdigest()))
    return files


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, source: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._source = source
        self._on_read = on_read
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self._on_read(len(data))
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _require_as_signed(moment: Moment, files: list[SavedFile]) -> None:
    """Refuse to call a backup what nobody could restore."""
    written = {entry.name: entry for entry in files}
    for number, manifest in moment.manifests.items():
        for entry in manifest.files:
            name = f"published/{folder_name(number)}/{entry.name}"
            found = written.get(name)
            if found is None or found.digest != entry.digest:
                raise UnavailableError(
                    f"{name}: damaged on this disk: it is not what the manifest signs; restore it "
                    "from a copy or a backup"
                )


@contextmanager
def _moment(home: CoordinatorHome) -> Iterator[Moment]:
    """Yield files that belong together, under names of their own below the coordinator's folder.

    What a backup left that was killed is removed first.
    """
    workplace = home.folder / _WORKPLACE
    workplace.mkdir(mode=0o700, exist_ok=True)
    with alone(workplace, who="a backup"):
        try:
            yield _taken_once(home, workplace / "files")
        finally:
            shutil.rmtree(workplace / "files", ignore_errors=True)


def _taken_once(home: CoordinatorHome, folder: Path) -> Moment:
    """Take a moment; as often as a round goes by in the middle of it, once more."""
    for attempt in range(1, _ATTEMPTS + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            return _taken(home, folder)
        except (FileNotFoundError, UntrustedError):
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _taken(home: CoordinatorHome, folder: Path) -> Moment:
    """Copy the database, and link what belongs to it.

    Raises:
        FileNotFoundError: A round went by meanwhile; try again.
        UntrustedError: A model card was renewed meanwhile; the same.
    """
    _copy_database(home, folder / DATABASE)
    with closing(Registry(f"sqlite:///{folder / DATABASE}")) as registry:
        newest = registry.newest_round() or 0
        contributed = [(c.round, c.member_id) for c in registry.contributions(newest + 1)]
        envelopes = {n: registry.manifest(n) for n in {0, newest}}
    for suffix in ("-wal", "-shm"):
        Path(f"{folder / DATABASE}{suffix}").unlink(missing_ok=True)
    manifests = {n: Manifest.parsed(e.payload, what="manifest") for n, e in envelopes.items() if e}
    _link_all(
        home.folder, folder, [p for name in SINGLE_FILES if (p := home.folder / name).exists()]
    )
    for name in FOLDERS:
        _link_tree(home.folder, folder, home.folder / name)
    for number in manifests:
        _link_tree(home.folder, folder, home.checkpoint(number))
        _require_card(folder / "published" / folder_name(number))
    state = home.outer_state(newest)
    made = manifests[newest].made
    if made is not None and made.outer.state_root is not None:
        _link_all(home.folder, folder, [state])
    for number, member_id in contributed:  # late ones lie with the round that they answer
        received = home.contributions / folder_name(number)
        names = [received / f"{member_id}.{suffix}" for suffix in ("contribution", "json")]
        _link_all(home.folder, folder, names)
    return Moment(folder=folder, newest=newest, manifests=manifests)


def _copy_database(home: CoordinatorHome, target: Path) -> None:
    """Copy the registry's database as of one moment, while others write to it.

    Raises:
        ConfigError: It is on a server.
    """
    url = make_url(database_url(home))
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigError(
            "the database is on a server: back that up with its own tools, such as pg_dump; "
            "docs/operations.md says in which order"
        )
    target.touch(mode=0o600)
    with (
        closing(sqlite3.connect(url.database, timeout=60)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def _require_card(folder: Path) -> None:
    card = Card.parsed(read_envelope(folder / CARD_FILE, what="card").payload, what="card")
    require_card_files(folder, card)


def _link_tree(home: Path, target: Path, source: Path) -> None:
    """Link every file below `source`, which may be absent unless it is a checkpoint."""
    if not source.is_dir() and source.parent.name == "published":
        raise FileNotFoundError(source)
    _link_all(home, target, [path for path in sorted(source.rglob("*")) if path.is_file()])


def _link_all(home: Path, target: Path, paths: list[Path]) -> None:
    for path in paths:
        to = target / path.relative_to(home)
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.link(path, to)
        except (PermissionError, NotImplementedError):  # a file system without links
            shutil.copyfile(path, to)
