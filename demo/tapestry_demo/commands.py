"""`tapestry demo`: a whole federation on one machine, measured."""

import signal
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import platformdirs
import typer

from tapestry.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Much shorter: shows that everything works.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="New folder in which everything is kept.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Your own text: a folder with one sub-folder per institution, named by its id; "
            "a sub-folder `pool`, if there is one, is the open pool that all share.",
        ),
    ] = None,
) -> None:
    """Run a federation of four institutions on this machine, for real, and measure it.

    One coordinator and four nodes, each a process of its own, talk over mutual TLS. Each node
    holds text of one language. At the end: what the consensus is worth beside training alone and
    beside training on everything in one place, a verified checkpoint, and what left each node.
    No network is used but this machine's own.
    """
    from tapestry_demo.story import tell  # noqa: PLC0415 - imports torch and matplotlib

    def on_terminate(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_terminate)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise ConfigError(f"{keep}: not empty; name a new folder")
    if keep is not None:
        tell(keep.resolve(), quick=quick, data=data, keep=True)
        return
    cache = Path(platformdirs.user_cache_dir("tapestry", appauthor=False)) / "demo"
    cache.mkdir(parents=True, exist_ok=True)
    tell(Path(tempfile.mkdtemp(prefix="run-", dir=cache)), quick=quick, data=data, keep=False)
