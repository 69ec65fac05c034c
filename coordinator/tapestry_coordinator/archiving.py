"""What the coordinator keeps of past rounds, by the federation's policy, and gives to auditors.

The home itself is laid out as an archive (`tapestry.checkpoints.archive`): keeping means not to
remove.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from tapestry.checkpoints.archive import Archive
from tapestry.checkpoints.deciding import kept_vectors
from tapestry.checkpoints.folder import building
from tapestry.checkpoints.manifest import Manifest
from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry_coordinator.callers import identify
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import AUDITOR


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRound:
    """What is left of a published round."""

    round: int
    files: Sequence[Path]
    """That a replay needs, but for the checkpoint before."""
    missing: Sequence[Path]
    """Those of them that are gone."""
    has_parent: bool
    """Whether the checkpoint before is here."""

    @property
    def is_whole(self) -> bool:
        """Whether it can be replayed from here."""
        return not self.missing and self.has_parent

    @property
    def size_bytes(self) -> int:
        """Of what is here of `files`."""
        return sum(path.stat().st_size for path in self.files if path.is_file())


def kept_round(home: CoordinatorHome, registry: Registry, number: int) -> KeptRound:
    """Return what is left of a round.

    Raises:
        RejectedError: No checkpoint of that round is published.
    """
    before = registry.manifest(number - 1) if number > 0 else None
    if before is None or registry.manifest(number) is None:
        raise RejectedError(f"round {number} has no published checkpoint")
    archive = Archive(home.folder)
    files: list[Path] = []
    for stored in registry.contributions(number):
        files.append(archive.contribution(stored.round, stored.member_id))
        files.append(archive.announcement(stored.round, stored.member_id))
    base = Manifest.parsed(before.payload, what=f"manifest of round {number - 1}")
    if kept_vectors(base) > 0:
        files.append(archive.outer_state(number - 1))
    return KeptRound(
        round=number,
        files=files,
        missing=[path for path in files if not path.is_file()],
        has_parent=home.checkpoint(number - 1).is_dir(),
    )


def export(home: CoordinatorHome, registry: Registry, numbers: Sequence[int], target: Path) -> int:
    """Copy everything that a replay of rounds needs into the new folder `target`.

    Args:
        home: Of the coordinator, which may be running.
        registry: Its registry.
        numbers: Of the rounds.
        target: Must not exist; appears whole or not at all.

    Returns:
        How many bytes it has.

    Raises:
        ConfigError: The folder exists, or something of a round is not kept any more.
        RejectedError: A round is not published.
        OSError: The disk is full; nothing is left behind.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder")
    rounds = [kept_round(home, registry, number) for number in numbers]
    for kept in rounds:
        if not kept.is_whole:
            parent = home.checkpoint(kept.round - 1)
            gone = kept.missing[0] if kept.missing else parent
            raise ConfigError(
                f"round {kept.round}: {gone} is not kept any more; see [archive] in policy.toml "
                "and [keep] in coordinator.toml"
            )
    files = {path for kept in rounds for path in kept.files}
    folders = {home.checkpoint(n) for kept in rounds for n in (kept.round - 1, kept.round)}
    with building(target.resolve()) as folder:
        for path in sorted(files):
            copy = folder / path.relative_to(home.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for path in sorted(folders):
            shutil.copytree(path, folder / path.relative_to(home.folder))
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def readable_files(desk: Desk, context: grpc.ServicerContext, number: int) -> dict[str, Path]:
    """Return what is kept of a round by name, for a caller who may read it.

    Raises:
        UntrustedError: The caller is no auditor.
        RejectedError: The round is not published, or not kept.
    """
    member = identify(context, desk)
    if member.role != AUDITOR:
        raise UntrustedError(
            f"{member.member_id} is in this federation as {member.role}: only an auditor may read "
            "what members have sent"
        )
    kept = kept_round(desk.home, desk.registry, number)
    if kept.missing:
        raise RejectedError(
            f"round {number}: not kept any more, by the federation's policy ([archive])"
        )
    return {path.relative_to(desk.home.folder).as_posix(): path for path in kept.files}
