"""Who may see the local page: whoever has the token of this run, on this machine."""

from starlette.types import ASGIApp

from tapestry.web.door import TokenDoor

_REFUSAL = (
    "open the address that `tapestry node page` has said: it holds a token, which is new each time "
    "that the page is started (page.url in the node's folder)\n"
)


def door(app: ASGIApp, *, port: int) -> TokenDoor:
    """Return what guards `app`, which listens on `port`."""
    return TokenDoor(app, cookie=f"tapestry_node_{port}", refusal=_REFUSAL)
