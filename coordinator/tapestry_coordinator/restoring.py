"""A coordinator's folder from a backup: verified whole before it appears.

A backup is read as something that anybody may have changed: only plain files with the names that
`backup.py` writes, each compared with the inventory, and then everything signed with its signature.
"""

import hashlib
import json
import re
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tapestry.checkpoints.deciding import kept_vectors
from tapestry.checkpoints.folder import building, folder_name
from tapestry.checkpoints.manifest import Manifest, verify_lineage
from tapestry.checkpoints.outer_state import OuterStateFile
from tapestry.checkpoints.statements import Contribution
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import ConfigError, TapestryError, UntrustedError
from tapestry.identity.certificates import fingerprint
from tapestry.identity.keys import public_bytes
from tapestry_coordinator.backup import (
    DATABASE,
    FOLDERS,
    FORM,
    INVENTORY,
    SINGLE_FILES,
    Inventory,
    SavedFile,
)
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.uploads import FragmentStore

_FOLDERS = (*FOLDERS, "published", "outer", "contributions")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_MAX_INVENTORY_BYTES = 2**28
_CHUNK_BYTES = 2**20


def restore(
    archive: Path,
    folder: Path,
    *,
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None,
) -> Inventory:
    """Make a coordinator's folder of a backup.

    Args:
        archive: What `back_up` wrote.
        folder: New or empty.
        on_bytes: Told how many bytes of the archive are read of how many.

    Raises:
        ConfigError: The folder is taken, or the file is no backup.
        UntrustedError: Something in it is damaged, missing, or signed by somebody else; nothing is
            left behind.
        OSError: The disk is full; the same.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there already, and not an empty folder: name a new one")
    if not archive.is_file():
        raise ConfigError(f"{archive}: no such file; `tapestry coordinator backup` makes one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rmdir()
    with building(folder.resolve()) as temporary:
        temporary.chmod(0o700)
        inventory = _extract(archive, temporary, on_bytes)
        _verify(CoordinatorHome(temporary), inventory)
    return inventory


def _extract(archive: Path, folder: Path, on_bytes: Callable[[int, int], None]) -> Inventory:
    """Write the files of a backup below `folder`, and compare them with its inventory."""
    total = archive.stat().st_size
    found: dict[str, SavedFile] = {}
    inventory = None
    try:
        with archive.open("rb") as source, tarfile.open(fileobj=source, mode="r:") as tar:
            for member in tar:
                if inventory is not None:
                    raise UntrustedError(f"{archive}: goes on after its inventory")
                _require_plain(archive, member, found)
                if member.name == INVENTORY:
                    inventory = _read_inventory(archive, tar, member)
                else:
                    found[member.name] = _extract_one(tar, member, folder)
                on_bytes(source.tell(), total)
    except (tarfile.TarError, EOFError) as error:
        raise UntrustedError(f"{archive}: no whole backup: {error}; copy it again") from error
    if inventory is None:
        raise UntrustedError(f"{archive}: no whole backup: its end is missing; copy it again")
    _compare(archive, found, inventory)
    return inventory


def _require_plain(archive: Path, member: tarfile.TarInfo, found: dict[str, SavedFile]) -> None:
    """Refuse everything but plain files where a coordinator has them."""
    parts = member.name.split("/")
    is_known = member.name in {*SINGLE_FILES, DATABASE, INVENTORY} or (
        len(parts) > 1 and parts[0] in _FOLDERS
    )
    is_named = all(_PART.fullmatch(part) for part in parts)
    if not (member.isreg() and is_known and is_named) or member.name in found:
        raise UntrustedError(
            f"{archive}: holds {member.name!r:.80}, which no backup of a coordinator has: "
            "do not use it"
        )


def _extract_one(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> SavedFile:
    path = folder / member.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source, digest, size = tar.extractfile(member), hashlib.sha256(), 0
    if source is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with source, path.open("xb") as file:
        path.chmod(0o600)
        while data := source.read(_CHUNK_BYTES):
            digest.update(data)
            size += file.write(data)
    return SavedFile(name=member.name, size_bytes=size, digest=digest.hexdigest())


def _read_inventory(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Inventory:
    source = tar.extractfile(member)
    if source is None or member.size > _MAX_INVENTORY_BYTES:
        raise UntrustedError(f"{archive}: its inventory cannot be read")
    try:
        table = json.loads(source.read())
        files = tuple(SavedFile(**entry) for entry in table.pop("files"))
        inventory = Inventory(files=files, **table)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UntrustedError(f"{archive}: its inventory cannot be read: {error}") from error
    if inventory.form != FORM:
        raise ConfigError(
            f"{archive}: made by another version (form {inventory.form}, this program reads form "
            f"{FORM}): install the version of Tapestry that made it"
        )
    return inventory


def _compare(archive: Path, found: dict[str, SavedFile], inventory: Inventory) -> None:
    listed = {entry.name: entry for entry in inventory.files}
    for name in sorted({*listed, *found}):
        if listed.get(name) != found.get(name):
            raise UntrustedError(f"{archive}: {name} is not what was written: copy it again")


def _verify(home: CoordinatorHome, inventory: Inventory) -> None:
    """Refuse a folder whose parts do not belong together, or are not what was signed."""
    try:
        home.load_settings()
        home.load_policy()
        key, authority = home.load_signing_key(), home.load_authority()
    except ConfigError as error:
        raise UntrustedError(f"the backup is not whole: {error}") from error
    genesis = verify_checkpoint(home.checkpoint(0), federation=inventory.federation)
    newest = verify_checkpoint(
        home.checkpoint(inventory.newest_checkpoint), federation=inventory.federation
    )
    origin = genesis.lineage.origin
    if public_bytes(key).hex() != origin.coordinator_key:
        raise UntrustedError("the backup's signing key is not that of its federation")
    if fingerprint(authority.certificate_pem).hex() != origin.root_certificate:
        raise UntrustedError("the backup's root certificate is not that of its federation")
    _verify_state(home, newest.manifest)
    _verify_database(home, newest)


def _verify_state(home: CoordinatorHome, manifest: Manifest) -> None:
    vectors = kept_vectors(manifest)
    if manifest.made is None or vectors == 0:
        return
    layout = open_vector_file(home.checkpoint(manifest.round) / MODEL_FILE).layout
    try:
        root = OuterStateFile(home.outer_state(manifest.round), layout, vectors).root()
    except (TapestryError, OSError) as error:
        raise UntrustedError(f"the backup's outer state cannot be read: {error}") from error
    if root.hex() != manifest.made.outer.state_root:
        raise UntrustedError("the backup's outer state is not what the manifest signs")


def _verify_database(home: CoordinatorHome, newest: VerifiedCheckpoint) -> None:
    path = home.folder / DATABASE
    try:
        with closing(sqlite3.connect(path)) as connection:
            (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        raise UntrustedError(f"the backup's database is damaged: {answer}")
    with closing(Registry(f"sqlite:///{path}")) as registry:
        lineage = verify_lineage(registry.lineage(), pinned=newest.genesis_digest)
        if lineage.newest_digest != newest.manifest_digest:
            raise UntrustedError("the backup's database and its newest checkpoint do not match")
        number = newest.manifest.round + 1
        layout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
        store = FragmentStore(home.contributions, layout)
        for stored in registry.contributions(number):
            what = f"contribution of {stored.member_id}"
            contribution = Contribution.parsed(stored.envelope.payload, what=what)
            found = store.finished(stored.round, stored.member_id)
            if found is None or found[0].hex() != contribution.root:
                raise UntrustedError(
                    f"the backup's {what} in {folder_name(stored.round)} is missing or damaged"
                )
