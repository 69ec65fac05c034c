"""`tapestry node status`: parse, call, render."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.cli.bars import restore
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_node.options import AsJson, Folder

if TYPE_CHECKING:
    from tapestry_node.overview import Observer

_clock = time.time  # noqa: TID251 - the edge that owns the clock
_EVERY_SECONDS = 1.0


def status(
    folder: Folder = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew each second, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the node is: what it does, its last rounds, what left today, what is to be done.

    Reads the node's own files and asks nobody, so it works while the node is stopped, without a
    line, and with damaged files, which it names; then the exit code is 1. The fields of --json are
    described in docs/institution.md.

    Examples: tapestry node status node --watch; tapestry node status node --json
    """
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.overview import Observer  # noqa: PLC0415

    if watch and as_json:
        raise ConfigError("--watch is for people and --json for programs: choose one")
    if watch and not sys.stdout.isatty():
        raise ConfigError("--watch needs a terminal; programs call status --json now and then")
    observer = Observer(require_node(folder or default_home("node")))
    if watch:
        _watch(observer)
        return
    seen = observer.look(now=_clock())
    if as_json:
        typer.echo(json.dumps(seen.table(), indent=1))
    else:
        from tapestry_node.screen import show  # noqa: PLC0415 - imports rich

        show(seen)
    if seen.damaged:
        raise typer.Exit(1)


def _watch(observer: "Observer") -> None:
    """Show the screen anew each second until Ctrl-C, which leaves the last one standing."""
    from rich.live import Live  # noqa: PLC0415

    from tapestry_node.screen import screen  # noqa: PLC0415

    live = Live(screen(observer.look(now=_clock())), auto_refresh=False)
    try:
        live.start(refresh=True)
        while True:
            time.sleep(_EVERY_SECONDS)
            live.update(screen(observer.look(now=_clock())), refresh=True)
    except KeyboardInterrupt:
        return
    finally:  # also if Ctrl-C came while it was drawn for the first time
        live.stop()
        restore()
