"""Arguments that several commands of `tapestry node` take, and how they are read."""

from pathlib import Path
from typing import Annotated

import typer

from tapestry.errors import ConfigError

Folder = Annotated[
    Path | None, typer.Argument(help="The node's folder; default: below your data directory.")
]
Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="The node's folder; default: below your data directory."),
]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data",
        help="Text: files or folders of .txt, .md, .jsonl, .parquet; may be repeated. Not needed "
        "with a corpus.toml.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def text_or_file(invitation: str) -> str:
    """Return the invitation's text.

    Raises:
        ConfigError: It looks like a path and cannot be read.
    """
    if invitation.strip().startswith("tapestry-invite-"):
        return invitation
    path = Path(invitation)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: neither an invitation (tapestry-invite-...) nor a file that holds one"
        ) from error
