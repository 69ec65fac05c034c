"""The page's door: who may come in, from which pages, and what every answer forbids the browser.

Around the whole application, its sockets included. Without a password the page is for this machine
only, and then only under a name of this machine: a stranger's web site that points its own name at
127.0.0.1 is refused.
"""

from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tapestry.web.door import refused, with_headers
from tapestry_coordinator.web.login import login_page
from tapestry_coordinator.web.passwords import MOST_CHARACTERS, Guesses, Password
from tapestry_coordinator.web.settings import PageSettings

SESSION_SECONDS = 12 * 3600
_PROGRAMS = ("/metrics", "/healthz")
_LOGINS_AT_ONCE = 4
_MOST_FORM_BYTES = 4 * MOST_CHARACTERS


class Guard:
    """Refuses, asks for the password, or lets through; inside `SessionMiddleware`."""

    def __init__(
        self,
        app: ASGIApp,
        settings: PageSettings,
        password: Password,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Guard `app`."""
        self.app = app
        self._settings = settings
        self._password = password
        self._clock = clock
        self._guesses = Guesses()
        self._logins = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = await self._refusal(scope, receive)
        if refusal is None:
            await self.app(scope, receive, with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, with_headers(send))

    async def _refusal(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer if it is not the application's to give."""
        refusal = refused(scope, is_local=not self._settings.needs_password)
        if refusal is not None:
            return PlainTextResponse(refusal[1], refusal[0])
        if scope["path"] == "/login" and scope["type"] == "http":
            return await self._login(Request(scope, receive))
        if scope["path"] == "/logout" and scope.get("method") == "POST":
            scope["session"].clear()
        return None if self._may_enter(scope) else self._unknown(scope)

    def _unknown(self, scope: Scope) -> Response:
        """Return the answer to somebody who is not logged in."""
        path = scope["path"]
        if path in ("/", "/logout"):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("log in first\n", 401)

    def _may_enter(self, scope: Scope) -> bool:
        if scope["path"] in _PROGRAMS:
            settings = self._settings
            if settings.metrics_open or (settings.is_loopback and not settings.behind_proxy):
                return True
        if not self._password.is_set:
            return not self._settings.needs_password
        return bool(scope["session"].get("mark") == self._password.mark)

    async def _login(self, request: Request) -> Response:
        if not self._password.is_set:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            return HTMLResponse(login_page())
        address, now = request.client.host if request.client else "", self._clock()
        wait = self._guesses.wait_seconds(address, now=now)
        if wait > 0:
            text = login_page(f"Too many attempts: try again in {int(wait // 60) + 1} min.")
            return HTMLResponse(text, 429, headers={"retry-after": str(int(wait) + 1)})
        if self._logins >= _LOGINS_AT_ONCE:
            return HTMLResponse(login_page("Others are logging in: try again in a moment."), 429)
        self._guesses.failed(address, now=now)  # before the slow part: no burst gets through
        self._logins += 1
        try:
            said = await _form_password(request)
            matches = await run_in_threadpool(self._password.matches, said)
        finally:
            self._logins -= 1
        if not matches:
            return HTMLResponse(login_page("That is not the password."), 401)
        self._guesses.forgive(address)
        request.session["mark"] = self._password.mark
        return RedirectResponse("/", 303)


async def _form_password(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            return ""
    try:
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=4)
    except ValueError:  # a form of many fields is not ours
        return ""
    return next(iter(fields.get("password", ())), "")
