"""Carrying a bundle over to every newer checkpoint that appears in a folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tapestry.errors import TapestryError
from tapestry_finetune.bundle import Bundle, open_bundle
from tapestry_finetune.rebase import Asked, Rebased
from tapestry_finetune.run import Telling


def newer_checkpoints(folder: Path, bundle: Bundle) -> list[Path]:
    """Return published checkpoints below `folder` that are newer than a bundle's base."""
    at = bundle.lineage.base.round
    newest = -1 if at is None else at
    found = []
    for path in sorted(folder.glob("round-*")):
        number = path.name.removeprefix("round-")
        if path.is_dir() and number.isdigit() and int(number) > newest:
            found.append(path)
    return found


def watch(
    folder: Path,
    asked: Asked,
    out: Path,
    carry: Callable[[Asked, Path], Rebased],
    telling: Telling,
    *,
    sleep: Callable[[float], None],
    once: bool = False,
) -> None:
    """Carry a bundle over to every newer checkpoint in `folder`, each time from the last bundle.

    A checkpoint that does not verify, or whose candidates are all below the floor, is named and
    left alone.

    Args:
        folder: Where checkpoints are published or fetched to.
        asked: The bundle to begin with.
        out: Folder for the new bundles, one a round.
        carry: Does one rebase into a folder.
        telling: Who is told.
        sleep: Waits between two looks.
        once: Look once.
    """
    current, left_alone = asked.bundle, set[Path]()
    while not telling.is_stopped():
        for path in newer_checkpoints(folder, open_bundle(current)):
            target = out / path.name
            if target.exists():
                current = target
                continue
            if path in left_alone:
                continue
            try:
                carry(replace(asked, bundle=current, onto=path), target)
                current = target
            except TapestryError as error:
                left_alone.add(path)
                telling.say(f"{path.name}: left alone: {error}")
        if once:
            return
        sleep(10.0)
