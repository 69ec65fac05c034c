"""What every page forbids the browser, and strangers' web sites; local pages ask for a token."""

import hmac
import secrets
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


def refused(scope: Scope, *, is_local: bool) -> tuple[int, str] | None:
    """Return status and words for a request that other sites may have caused; None: it is none.

    Args:
        scope: Of the request.
        is_local: Whether the page is reached by names of this machine only: a stranger's web site
            may point its own name at 127.0.0.1.
    """
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if is_local and (urlsplit(f"//{host}").hostname or "") not in _LOCAL_NAMES:
        return 421, f"{host[:100]}: this page answers to localhost only\n"
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "requests from other sites are refused\n"
    return None


def with_headers(send: Send) -> Send:
    """Return a `send` that adds the security headers."""

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


class TokenDoor:
    """Lets in whoever has the token of this run, on this machine.

    Other users of the machine, and programs of theirs, reach its loopback too; the token keeps
    them out. It comes in the address, once, and is a cookie from then on.
    """

    def __init__(self, app: ASGIApp, *, cookie: str, refusal: str) -> None:
        """Guard a local page.

        Args:
            app: The page.
            cookie: Its name, with the port in it: browsers do not tell ports apart.
            refusal: What somebody without the token reads; a line.
        """
        self.token = secrets.token_urlsafe(32)
        """Of this run; whoever has it may look."""
        self._app = app
        self._secret = secrets.token_urlsafe(32)
        self._cookie = cookie
        self._refusal = refusal

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
        return PlainTextResponse(self._refusal, 401)
