"""`tapestry node page`; NiceGUI is imported when the page is served."""

import os
import time
from typing import Annotated

import typer

from tapestry.cli.running import default_home, log_to_stderr
from tapestry_node.options import Folder

_PORT = 7446


def page(
    folder: Folder = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: one that is free.")
    ] = _PORT,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
) -> None:
    """Show this node in a web browser of this machine until Ctrl-C.

    Training curve, quality, what left, the egress ledger, the policy, and what waits for approval.
    It reads the node's records, never its text, and changes nothing. Only this machine reaches it,
    and only with its address, which holds a token of this run: it is said on the terminal, and lies
    in page.url (0600) in the node's folder.

    Example: tapestry node page node
    """
    from tapestry_node.home import require_node  # noqa: PLC0415

    log_to_stderr(as_json=json_log, verbose=False)
    home = require_node(folder or default_home("node"))
    os.environ["NICEGUI_STORAGE_PATH"] = str(home.folder / ".nicegui")  # read when it is imported
    from tapestry_node.web.serving import serve_page  # noqa: PLC0415 - a second to import

    serve_page(home, port=port, clock=time.time, say=typer.echo)  # noqa: TID251 - the edge
