"""`tapestry coordinator page` and `page-password`; NiceGUI is imported when the page is served."""

import getpass
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.running import log_to_stderr
from tapestry.errors import ConfigError
from tapestry_coordinator.home import CoordinatorHome, find_home


def page(
    folder: Annotated[Path | None, typer.Argument(help="The coordinator's folder.")] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
    database: Annotated[str, typer.Option(help="As `serve` was given it.")] = "",
) -> None:
    """Show the federation in a web browser until Ctrl-C; `serve` does this by itself.

    The page only reads: the registry, and what the coordinator writes about the moment. It also
    answers /metrics (Prometheus) and /healthz. Settings: the table [page] of coordinator.toml.

    Example: tapestry coordinator page fed, then open http://127.0.0.1:7445
    """
    home = find_home(folder)
    if database:
        home = replace(home, storage=(("database", database),))
    settings = home.load_settings().page
    log_to_stderr(as_json=json_log, verbose=False)
    os.environ["NICEGUI_STORAGE_PATH"] = str(home.page / "nicegui")  # read when it is imported
    from tapestry_coordinator.web.serving import serve_page  # noqa: PLC0415 - a second to import

    serve_page(home, settings, clock=time.time, with_parent=with_parent)  # noqa: TID251 - the edge


def page_password(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="The coordinator's folder; default: below your data directory."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Ask for none any more; on loopback only.")
    ] = False,
) -> None:
    """Set the operator's password of the web page; whoever is logged in has to log in again.

    Asks for it twice, or reads one line from standard input if that is no terminal. Only a salted
    scrypt digest is kept (0600). With a password the page asks for it on loopback too.

    Example: tapestry coordinator page-password --dir fed
    """
    from tapestry_coordinator.web.passwords import password_file, set_password  # noqa: PLC0415

    home = find_home(folder)
    if remove:
        if home.load_settings().page.needs_password:
            raise ConfigError(
                "others than this machine can reach the page: set [page] listen to 127.0.0.1 and "
                "behind_proxy to false first"
            )
        password_file(home).unlink(missing_ok=True)
        typer.echo("the page asks for no password any more")
        return
    set_password(home, _ask())
    typer.echo("the page's password is set; sessions that were open have ended")


def beside(home: CoordinatorHome, *, json_log: bool) -> AbstractContextManager[object]:
    """Return a block in which the page runs, if the settings want it.

    Raises:
        ConfigError: It would be open to strangers.
    """
    from tapestry_coordinator.web.beside import PageBeside  # noqa: PLC0415
    from tapestry_coordinator.web.passwords import Password, require_safe  # noqa: PLC0415

    settings = home.load_settings().page
    if not settings.enabled:
        return nullcontext()
    require_safe(settings, Password(home))
    return PageBeside(home, json_log=json_log)


def _ask() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("New password: ")
    if getpass.getpass("Again: ") != password:
        raise ConfigError("the two are not the same: nothing was changed")
    return password
