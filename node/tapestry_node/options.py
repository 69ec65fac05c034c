"""Arguments that several commands of `tapestry node` take."""

from pathlib import Path
from typing import Annotated

import typer

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
