"""What several commands ask in the same words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tapestry.errors import ConfigError

Federation = Annotated[str | None, typer.Option(help="The federation's identity that you expect.")]
CommunityKey = Annotated[
    str | None,
    typer.Option(
        "--key", help="Fingerprint of the community's key that you expect, 16 digits or more."
    ),
]
KeyFolder = Annotated[
    Path | None,
    typer.Option("--key", help="Folder of your community's signing key; made at first use."),
]
RowShape = Annotated[
    str | None,
    typer.Option(
        "--shape", help="messages, sharegpt, alpaca, prompt, pairs, thumbs, text; else seen."
    ),
]
Roles = Annotated[
    list[str] | None, typer.Option("--role", help="What a role of yours means: bot=assistant.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="What a column of yours means: demando=prompt."),
]
SkipBad = Annotated[
    Path | None,
    typer.Option("--skip-bad", help="Move bad rows into this folder, with their reasons."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified",
        help="Take a base that is no published checkpoint: nobody can then say which institutions "
        "stand behind it, or whether somebody changed it.",
    ),
]


def require_folders(*folders: Path | None) -> None:
    """Refuse folders that are not there, before anything that takes long is imported.

    Raises:
        ConfigError: With the first.
    """
    for folder in folders:
        if folder is not None and not folder.is_dir():
            what = "not a folder" if folder.exists() else "no such folder"
            raise ConfigError(f"{folder}: {what}")


def mapping(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return what `--role` or `--column` said, theirs to ours.

    Raises:
        ConfigError: One of them is no such pair.
    """
    made: dict[str, str] = {}
    for one in given or []:
        theirs, equals, ours = one.partition("=")
        if not (theirs and equals and ours):
            raise ConfigError(f"{option} {one}: expected yours=ours, such as bot=assistant")
        made[theirs] = ours
    return made
