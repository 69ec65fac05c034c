"""The page's process: on this machine only, behind a token, until Ctrl-C."""

from collections.abc import Callable
from contextlib import closing

from nicegui import ui

from tapestry.web.door import TokenDoor
from tapestry.web.serving import application, attach, listen, run
from tapestry_finetune.charter.choices import Choices
from tapestry_finetune.charter.page import Visit
from tapestry_finetune.charter.settings import Charter

_HOST = "127.0.0.1"
_REFUSAL = (
    "open the address that `tapestry finetune charter collect` has said: it holds a token, which "
    "is new each time\n"
)


def serve_choosing(
    charter: Charter,
    choices: Choices,
    *,
    port: int,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        charter: Whose principles and words.
        choices: What is asked, and where the answers go.
        port: Of loopback; 0: a free one.
        clock: Unix seconds.
        say: Takes the address.

    Raises:
        ConfigError: The port is in use.
    """
    app = application(lambda: False)

    @ui.page("/", title=f"{charter.identity.community} \u00b7 Tapestry")
    def show() -> None:
        Visit(charter, choices, clock=clock).build()

    attach(app)
    with closing(listen(_HOST, port, remedy="choose another --port")) as listening:
        bound = listening.getsockname()[1]
        door = TokenDoor(app, cookie=f"tapestry_charter_{bound}", refusal=_REFUSAL)
        say(f"http://{_HOST}:{bound}/?token={door.token}")
        run(door, listening)
