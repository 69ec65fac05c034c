"""Who may see the local page: whoever has the token of this run, on this machine.

Other users of the machine, and programs of theirs, reach its loopback too; the token keeps them
out. It comes in the address, once, and is a cookie from then on.
"""

import hmac
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tapestry.web.door import refused, with_headers

_REFUSAL = (
    "open the address that `tapestry node page` has said: it holds a token, which is new each time "
    "that the page is started (page.url in the node's folder)\n"
)


class Door:
    """Refuses, takes the token, or lets through."""

    def __init__(self, app: ASGIApp, *, port: int) -> None:
        """Guard `app`, which listens on `port`."""
        self.token = secrets.token_urlsafe(32)
        """Of this run; whoever has it may look."""
        self._app = app
        self._secret = secrets.token_urlsafe(32)
        self._cookie = f"tapestry_node_{port}"  # browsers do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        answer = None if scope["type"] == "lifespan" else self._answer(scope)
        if answer is None:
            await self._app(scope, receive, with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer if it is not the application's to give."""
        refusal = refused(scope, is_local=True)
        if refusal is not None:
            return PlainTextResponse(refusal[1], refusal[0])
        if scope["type"] == "http" and scope["path"] == "/":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            said = query.get("token", [""])[0]
            if said and hmac.compare_digest(said.encode(), self.token.encode()):
                response = RedirectResponse("/", 303)
                response.set_cookie(self._cookie, self._secret, httponly=True, samesite="strict")
                return response
        cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
        shown = cookies.get(self._cookie, "").encode()
        if hmac.compare_digest(shown, self._secret.encode()):
            return None
        return PlainTextResponse(_REFUSAL, 401)
