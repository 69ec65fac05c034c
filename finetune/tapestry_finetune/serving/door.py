"""Who may ask: on loopback this machine's programs; beyond it whoever has the token.

A browser gets in with the token in the address, once, and has a cookie from then on.
"""

import hmac
import ipaddress
import secrets
import socket
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry.web.door import refused, with_headers
from tapestry_finetune.serving.requests import MOST_BODY_BYTES, Refused

_OPEN = frozenset({"/health"})
_FEWEST_CHARACTERS = 16


def token_from(path: Path | None, *, host: str) -> str | None:
    """Return the token that callers must have; None: they need none.

    A file that is not there yet is made, with a new token.

    Raises:
        ConfigError: `host` is reached from elsewhere and there is no token file, or others can
            read the file, or it holds no token.
    """
    if path is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--host {host} is reached from other machines: add --token-file FILE (it is made "
                "if it is not there), and let a proxy that speaks TLS stand in front, since this "
                "server sends questions and answers in the clear"
            )
        return None
    if not path.exists():
        write_atomic(path, secrets.token_urlsafe(32) + "\n", mode=0o600)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others can read this token: chmod 600 {path}")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < _FEWEST_CHARACTERS or not token.isascii():
        raise ConfigError(f"{path}: expected a token of {_FEWEST_CHARACTERS} ASCII characters")
    return token


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False  # `listen` says why
    return all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)


class Door:
    """Refuses, takes the token, or lets through."""

    def __init__(self, app: ASGIApp, *, token: str | None, port: int, is_local: bool) -> None:
        """Guard `app`.

        Args:
            app: What is served.
            token: That a caller must have; None: none.
            port: Where it is reached.
            is_local: Whether it is reached by names of this machine only.
        """
        self._app = app
        self._token = token
        self._is_local = is_local
        self._secret = secrets.token_urlsafe(32)
        self._cookie = f"tapestry_serve_{port}"  # browsers do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        answer = self._answer(scope)
        if answer is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif answer is not None:
            await answer(scope, receive, with_headers(send))
        elif scope["type"] == "http":
            await self._app(scope, _limited(receive), with_headers(send))
        else:
            await self._app(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer if it is not the application's to give."""
        headers = Headers(scope=scope)
        refusal = refused(scope, is_local=self._is_local)
        if refusal is not None:
            return _said(Refused(refusal[0], refusal[1].strip()))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            return _said(too_large())
        if self._token is None or scope["path"] in _OPEN or self._is_known(headers):
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and self._is_token(query.get("token", [""])[0]):
            response = RedirectResponse("/", 303)
            response.set_cookie(self._cookie, self._secret, httponly=True, samesite="strict")
            return response
        message = (
            "a token is needed: programs send it as their API key, browsers open /?token=... once; "
            "it is in the file that the server was started with"
        )
        return _said(Refused(401, message, code="invalid_api_key"))

    def _is_known(self, headers: Headers) -> bool:
        """Return whether a request brings the token, or the cookie that it was given for it."""
        kind, _, said = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(said.strip()):
            return True
        shown = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        return hmac.compare_digest(shown.encode(), self._secret.encode())

    def _is_token(self, said: str) -> bool:
        return hmac.compare_digest(said.encode(), (self._token or self._secret).encode())


def too_large() -> Refused:
    """Return the refusal of a body that is too large."""
    return Refused(
        413, f"a request has at most {MOST_BODY_BYTES:,} bytes", code="request_too_large"
    )


def _said(refusal: Refused) -> JSONResponse:
    return JSONResponse(refusal.as_json(), refusal.status)


def _limited(receive: Receive) -> Receive:
    """Return a `receive` that ends a body which is larger than it said."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BODY_BYTES:
            raise too_large()
        return message

    return receiving
