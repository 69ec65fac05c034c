"""The local page's process."""

import logging
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from nicegui import ui

from tapestry.storage.atomic import write_atomic
from tapestry.web.serving import application, attach, listen, run
from tapestry_node.home import NodeHome
from tapestry_node.web.board import Board
from tapestry_node.web.door import door
from tapestry_node.web.page import build

_log = logging.getLogger(__name__)
_HOST = "127.0.0.1"


def serve_page(
    home: NodeHome, *, port: int, clock: Callable[[], float], say: Callable[[str], None]
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        home: Of the node.
        port: Of loopback; 0: a free one.
        clock: Unix seconds.
        say: Takes the address, for whoever sits at the terminal; it is never logged.

    Raises:
        ConfigError: The port is in use.
    """
    board = Board(home, clock=clock)
    app = application(board.refresh)

    @ui.page("/", title=f"{board.member_id} \u00b7 Tapestry", language="en-US")
    def show() -> None:
        build(board)

    attach(app)
    remedy = "stop the other process, or choose another --port"
    with closing(listen(_HOST, port, remedy=remedy)) as listening:
        bound = listening.getsockname()[1]
        guarded = door(app, port=bound)
        address = f"http://{_HOST}:{bound}/?token={guarded.token}"
        try:
            _write(home.page_address, address)
            _log.info("page: http://%s:%d, with the token in %s", _HOST, bound, home.page_address)
            if sys.stdout.isatty():
                say(address)
            run(guarded, listening)
        finally:
            home.page_address.unlink(missing_ok=True)


def _write(path: Path, address: str) -> None:
    write_atomic(path, address + "\n", mode=0o600, durable=False)
