"""A page's server: the socket, the process's end, and what keeps its figures fresh."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from tapestry.errors import ConfigError

_log = logging.getLogger(__name__)
_REFRESH_SECONDS = 1.0
_REST_SECONDS = 0.05
"""Between two pieces of a long history: visitors come first."""
_DRAIN_SECONDS = 2
_MESSAGES_KEPT = 20
"""Of each visitor's, for a line that breaks; who missed more gets the page anew."""
_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="none" stroke="#2857b8" '
    'stroke-width="2"><path d="M2 5h12M2 11h12M5 2v12M11 2v12"/></g></svg>'
)


def application(
    refresh: Callable[[], bool],
    *,
    start: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return an application that looks again and again while it runs.

    Args:
        refresh: Looks; tells whether there is more to look at, at once.
        start: Called after the first look.
        stop: Called at the end.
    """

    def refreshed() -> bool:
        try:
            return refresh()
        except Exception:  # noqa: BLE001 - logged whole; the page goes on with what it has
            _log.exception("a bug; tried again in a moment")
            return False

    async def keep_fresh() -> None:
        while True:
            more = await run_in_threadpool(refreshed)
            await asyncio.sleep(_REST_SECONDS if more else _REFRESH_SECONDS)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(refreshed)
        task = asyncio.create_task(keep_fresh())
        start()
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            stop()

    made: Callable[[FastAPI], AbstractAsyncContextManager[None]] = lifespan
    return FastAPI(lifespan=made, docs_url=None, redoc_url=None, openapi_url=None)


def attach(app: FastAPI) -> None:
    """Let NiceGUI's pages be served by `app`, with nothing from elsewhere."""
    ui.run_with(
        app, title="Tapestry", dark=False, tailwind=False, show_welcome_message=False,
        reconnect_timeout=30.0, message_history_length=_MESSAGES_KEPT, favicon=_FAVICON,
    )  # fmt: skip


def listen(host: str, port: int, *, remedy: str) -> socket.socket:
    """Return the listening socket.

    Args:
        host: To bind.
        port: To bind; 0: a free one.
        remedy: What to do if that cannot be.

    Raises:
        ConfigError: The port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()  # who comes before the server is ready waits a moment
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"the page cannot listen on {host}:{port}: {error.strerror or error}; {remedy}"
        ) from error
    return listening


def run(
    app: ASGIApp,
    listening: socket.socket,
    *,
    until: Callable[[], None] | None = None,
    **settings: Any,  # noqa: ANN401 - of uvicorn
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: What is served.
        listening: Its socket.
        until: Returns when the server is to end, if it ever is.
        settings: More of uvicorn's.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        **settings,
    )
    server = uvicorn.Server(config)

    def end(*_signal: object) -> None:
        server.should_exit = True

    if until is not None:
        threading.Thread(target=lambda: end(until()), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # before the server listens to them, and after
        signal.signal(number, end)
    server.run(sockets=[listening])
