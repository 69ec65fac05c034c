"""The page's process: the application, its certificate, and its server."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from nicegui import ui
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tapestry.errors import ConfigError
from tapestry.identity.certificates import create_tls_key, issue_server_certificate
from tapestry.identity.keys import private_pem
from tapestry.storage.atomic import write_atomic
from tapestry.web.serving import application, attach, listen, run
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
_CERTIFICATE_DAYS = 397
_VERSION = version("tapestry-fl")


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
    remedy = "stop the other process or change [page] listen in coordinator.toml"
    with closing(listen(settings.host, settings.port, remedy=remedy)) as listening:
        _log.info("page: %s://%s", "https" if settings.speaks_tls else "http", settings.listen)
        run(
            app,
            listening,
            until=_parent_ends if with_parent else None,
            proxy_headers=settings.behind_proxy,
            forwarded_allow_ips="127.0.0.1",
            **_certificate(home, settings, board.federation, clock),
        )
    engine.dispose()


def _application(
    board: Board, settings: PageSettings, password: Password, clock: Callable[[], float]
) -> SessionMiddleware:
    app = application(board.refresh, start=board.verifier.start, stop=board.verifier.stop)
    _add_routes(app, board)

    @ui.page("/", title=f"{board.federation} \u00b7 Tapestry", language="en-US")
    def show(request: Request) -> None:
        mark = request.session.get("mark", "")
        page = Page(board, may_look=lambda: not password.is_set or mark == password.mark)
        page.build(has_login=password.is_set)

    attach(app)
    return SessionMiddleware(
        Guard(app, settings, password, clock=clock),
        secret_key=session_secret(board.home),
        session_cookie="tapestry_page",
        max_age=SESSION_SECONDS,
        same_site="strict",
        https_only=settings.speaks_tls or settings.behind_proxy,
    )


def _add_routes(app: FastAPI, board: Board) -> None:
    metrics = Metrics(board)

    @app.get("/healthz")
    def healthz() -> Response:
        table = {**health_of(board), "page_version": _VERSION}
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


def _parent_ends() -> None:
    """Wait until standard input is closed, which its other end does by dying."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
