"""What several commands ask in the same words."""

from pathlib import Path
from typing import Annotated

import typer

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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified",
        help="Take a base that is no published checkpoint: nobody can then say which institutions "
        "stand behind it, or whether somebody changed it.",
    ),
]
