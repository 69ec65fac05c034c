"""What every page forbids the browser, and strangers' web sites."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

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
