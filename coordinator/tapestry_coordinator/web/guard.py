"""The page's door: who may come in, from which pages, and what every answer forbids the browser.

Around the whole application, its sockets included. Without a password the page is for this machine
only, and then only under a name of this machine: a stranger's web site that points its own name at
127.0.0.1 is refused.
"""

from collections.abc import Callable, Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapestry_coordinator.web.login import login_page
from tapestry_coordinator.web.passwords import MOST_CHARACTERS, Guesses, Password
from tapestry_coordinator.web.settings import PageSettings

SESSION_SECONDS = 12 * 3600
_PROGRAMS = ("/metrics", "/healthz")
_LOGINS_AT_ONCE = 4
_MOST_FORM_BYTES = 4 * MOST_CHARACTERS
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}

SECURITY_HEADERS = {
    # Vue compiles its templates in the browser: hence 'unsafe-eval'.
    "content-security-policy": "default-src 'self'; object-src 'none';"
    " script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:;"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


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
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, _with_headers(send))

    async def _refusal(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer if it is not the application's to give."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self._settings.needs_password and _name_of(host) not in _LOCAL_NAMES:
            return PlainTextResponse(
                f"{host[:100]}: this page answers to localhost only; see [page] listen\n", 421
            )
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("requests from other sites are refused\n", 403)
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
    fields = parse_qs(body.decode(errors="replace"), max_num_fields=4)
    return next(iter(fields.get("password", ())), "")


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port."""
    return urlsplit(f"//{host}").hostname or ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            _set_all(headers, SECURITY_HEADERS.items())
            if headers.get("cache-control") is None:
                headers["cache-control"] = "no-store"
        await send(message)

    return sending


def _set_all(headers: MutableHeaders, values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        headers[name] = value
