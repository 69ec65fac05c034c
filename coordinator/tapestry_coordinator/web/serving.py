"""The page's process: the application, its certificate, and its server."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from nicegui import ui
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tapestry.errors import ConfigError
from tapestry.identity.certificates import create_tls_key, issue_server_certificate
from tapestry.identity.keys import private_pem
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.database import database_url, open_to_read
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.web.board import Board
from tapestry_coordinator.web.downloads import Archive
from tapestry_coordinator.web.guard import SESSION_SECONDS, Guard
from tapestry_coordinator.web.metrics import Metrics, health_of
from tapestry_coordinator.web.page import Page
from tapestry_coordinator.web.passwords import Password, require_safe, session_secret
from tapestry_coordinator.web.settings import PageSettings

_log = logging.getLogger(__name__)
_REFRESH_SECONDS = 1.0
_REST_SECONDS = 0.05
"""Between two pieces of a long history: visitors come first."""
_DRAIN_SECONDS = 2
_MESSAGES_KEPT = 20
"""Of each visitor's, for a line that breaks; who missed more gets the page anew."""
_CERTIFICATE_DAYS = 397


def serve_page(
    home: CoordinatorHome,
    settings: PageSettings,
    *,
    clock: Callable[[], float],
    with_parent: bool = False,
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        home: The coordinator's.
        settings: The table `[page]`.
        clock: Unix seconds.
        with_parent: End also when standard input is closed: whoever started this has died.

    Raises:
        ConfigError: It would be open to strangers, or its port is in use.
    """
    password = Password(home)
    require_safe(settings, password)
    engine = open_to_read(database_url(home))
    board = Board(home, engine, clock=clock)
    app = _application(board, settings, password, clock)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.behind_proxy,
        forwarded_allow_ips="127.0.0.1",
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        **_certificate(home, settings, board.federation, clock),
    )
    server = uvicorn.Server(config)
    if with_parent:
        threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # before the server listens to them, and after
        signal.signal(number, lambda _number, _frame: setattr(server, "should_exit", True))
    with closing(_listen(settings)) as listening:
        _log.info("page: %s://%s", "https" if settings.speaks_tls else "http", settings.listen)
        server.run(sockets=[listening])
    engine.dispose()


def _application(
    board: Board, settings: PageSettings, password: Password, clock: Callable[[], float]
) -> SessionMiddleware:
    app = FastAPI(lifespan=_lifespan(board), docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, board)

    @ui.page("/", title=f"{board.federation} \u00b7 Tapestry", language="en-US")
    def show(request: Request) -> None:
        mark = request.session.get("mark", "")
        page = Page(board, may_look=lambda: not password.is_set or mark == password.mark)
        page.build(has_login=password.is_set)

    ui.run_with(
        app, title="Tapestry", dark=False, tailwind=False, show_welcome_message=False,
        reconnect_timeout=30.0, message_history_length=_MESSAGES_KEPT, favicon=_FAVICON,
    )  # fmt: skip
    return SessionMiddleware(
        Guard(app, settings, password, clock=clock),
        secret_key=session_secret(board.home),
        session_cookie="tapestry_page",
        max_age=SESSION_SECONDS,
        same_site="strict",
        https_only=settings.speaks_tls or settings.behind_proxy,
    )


_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="none" stroke="#2857b8" '
    'stroke-width="2"><path d="M2 5h12M2 11h12M5 2v12M11 2v12"/></g></svg>'
)


def _add_routes(app: FastAPI, board: Board) -> None:
    metrics = Metrics(board)

    @app.get("/healthz")
    def healthz() -> Response:
        table = {**health_of(board), "page_version": version("tapestry-fl")}
        return JSONResponse(table, 200 if table["healthy"] else 503)

    @app.get("/metrics")
    def all_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/checkpoints/{number}.tar")
    def download(number: int) -> Response:
        folder = board.home.checkpoint(number)
        if board.history.round(number) is None or not folder.is_dir():
            return PlainTextResponse(f"checkpoint {number} is not kept here\n", 404)
        archive = Archive(folder)
        name = f"{board.federation}-{folder.name}.tar"
        headers = {
            "content-length": str(archive.size_bytes),
            "content-disposition": f'attachment; filename="{name}"',
        }
        return StreamingResponse(archive.chunks(), media_type="application/x-tar", headers=headers)


def _refreshed(board: Board) -> bool:
    try:
        return board.refresh()
    except Exception:  # noqa: BLE001 - logged whole; the page goes on with what it has
        _log.exception("a bug; tried again in a moment")
        return False


def _lifespan(board: Board) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    async def keep_fresh() -> None:
        while True:
            more = await run_in_threadpool(_refreshed, board)
            await asyncio.sleep(_REST_SECONDS if more else _REFRESH_SECONDS)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(_refreshed, board)
        task = asyncio.create_task(keep_fresh())
        board.verifier.start()
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            board.verifier.stop()

    return lifespan


def _listen(settings: PageSettings) -> socket.socket:
    """Return the listening socket.

    Raises:
        ConfigError: The port is in use, or the address is not of this machine.
    """
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
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
            f"the page cannot listen on {settings.listen}: {error.strerror or error}; stop the "
            "other process or change [page] listen in coordinator.toml"
        ) from error
    return listening


def _certificate(
    home: CoordinatorHome, settings: PageSettings, federation: str, clock: Callable[[], float]
) -> dict[str, Any]:
    """Return what the server needs to speak TLS, if it is to.

    Raises:
        ConfigError: A file of the certificate is missing.
    """
    if not settings.speaks_tls:
        return {}
    if settings.certificate:
        paths = [home.folder / settings.certificate, home.folder / settings.key]
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"{path}: missing; [page] certificate and key name it")
        return {"ssl_certfile": paths[0], "ssl_keyfile": paths[1]}
    key = create_tls_key()
    names = {home.load_settings().network.address.rpartition(":")[0].strip("[]"), settings.host}
    certificate = issue_server_certificate(
        home.load_authority(),
        key.public_key(),
        federation=federation,
        hosts=sorted(names - {"0.0.0.0", "::", "localhost", "127.0.0.1"}),  # noqa: S104
        now=datetime.fromtimestamp(clock(), UTC),
        lifetime_days=_CERTIFICATE_DAYS,
    )
    home.page.mkdir(mode=0o700, exist_ok=True)
    path = home.page / "tls.pem"
    write_atomic(path, private_pem(key) + certificate, mode=0o600)
    return {"ssl_certfile": path}


def _end_with_parent(server: uvicorn.Server) -> None:
    """Wait until standard input is closed, which its other end does by dying."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    server.should_exit = True
