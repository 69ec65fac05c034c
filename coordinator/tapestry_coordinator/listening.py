"""The coordinator's two ports, and its certificate, which it renews while it listens.

gRPC reads a server's certificate once. So a new one comes with new servers: the old ones let go of
their ports, end their streams of plans and have ten minutes for the calls that are under way, as
at the end of a connection's life; members connect again, to the new ones.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tapestry.errors import ConfigError
from tapestry.identity.certificates import certificate_ends, issue_server_certificate
from tapestry.identity.keys import load_tls_key, private_pem
from tapestry.params.layout import ParameterLayout
from tapestry.v1 import enrolment_pb2_grpc, rounds_pb2_grpc
from tapestry.wire.admin import add_admin_service
from tapestry.wire.archives import add_archive_service
from tapestry.wire.bulk import add_transfer_service
from tapestry.wire.channels import server_credentials
from tapestry.wire.ledger import add_ledger_service
from tapestry.wire.limits import CALLS_END_SECONDS, SERVER_OPTIONS
from tapestry_coordinator.archiving import readable_files
from tapestry_coordinator.callers import operator_of
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.enrolment_service import EnrolmentService
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.places import Places
from tapestry_coordinator.rounds_service import RoundsService
from tapestry_coordinator.showing import ledger_for
from tapestry_coordinator.transfer_service import TransferService
from tapestry_coordinator.uploads import FragmentStore

_log = logging.getLogger(__name__)

_WORKERS = 1024
"""Threads at most, one a call: a member that sends a vector has six."""
_ENROLMENT_WORKERS = 64
"""More than one caller can take: nobody has shown a certificate there."""
_STOP_SECONDS = 3.0
_CERTIFICATE_DAYS = 398
_RENEW = timedelta(days=132)
"""Before its end: a third of its life."""
_BIND_SECONDS = 60.0
_AGAIN_SECONDS = 0.05
_COMPLAIN_SECONDS = 6 * 3600.0


@dataclass
class _Servers:
    """Both servers with one certificate."""

    ends: datetime
    """When the certificate does."""
    stopping: threading.Event = field(default_factory=threading.Event)
    ports: list[tuple[grpc.Server, str, grpc.ServerCredentials]] = field(default_factory=list)
    """Still to be taken."""
    bound: list[grpc.Server] = field(default_factory=list)
    callers: list[ThreadPoolExecutor] = field(default_factory=list)

    def bind(self) -> None:
        """Take the ports.

        Raises:
            ConfigError: One is in use.
        """
        while self.ports:
            server, listen, credentials = self.ports[-1]
            _bind(server, listen, credentials)
            self.bound.append(server)
            self.ports.pop()

    def start(self) -> None:
        """Answer."""
        for server in self.bound:
            server.start()

    def end(self, grace_seconds: float) -> list[threading.Event]:
        """Let go of the ports; return what is set when the last call is over."""
        self.stopping.set()
        return [server.stop(grace_seconds) for server in self.bound]

    def wait(self) -> None:
        """Wait until no call is under way."""
        for threads in self.callers:
            threads.shutdown()


class Listening:
    """Serves one desk at the ports of its coordinator's settings."""

    def __init__(
        self,
        home: CoordinatorHome,
        desk: Desk,
        store: FragmentStore,
        layout: ParameterLayout,
        places: Places,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Nothing listens yet; `clock` is the calendar's, in Unix seconds."""
        self._home = home
        self._desk = desk
        self._store = store
        self._layout = layout
        self._places = places
        self._clock = clock
        self._network = home.load_settings().network
        self._authority = home.load_authority()
        self._key = load_tls_key(home.tls_key)
        self._root_ends = certificate_ends(self._authority.certificate_pem)
        self._past: list[tuple[_Servers, list[threading.Event]]] = []
        """Those that answer what they were asked, and when each has done so."""
        self._complained = float("-inf")
        self._current = self._made()

    @property
    def certificate_ends(self) -> float:
        """Unix seconds until which members can connect, unless it is renewed."""
        return self._current.ends.timestamp()

    @property
    def root_ends(self) -> float:
        """Unix seconds until which anything that the federation's root has issued is valid."""
        return self._root_ends.timestamp()

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: A port is in use.
        """
        self._current.bind()
        self._current.start()

    def renew_if_due(self) -> None:
        """Go on with a new certificate if the end of this one is near."""
        self._let_go()
        if self._now() < self._current.ends - _RENEW:
            return
        if self._current.ends >= self._root_ends:
            self._complain("the federation's root ends then, and nothing can outlive that")
            return
        try:
            renewed = self._made()
        except ConfigError as error:
            self._complain(str(error))
            return
        self._past.append((self._current, self._current.end(CALLS_END_SECONDS)))
        self._desk.wake()
        self._take_over(renewed)
        self._current = renewed
        _log.info("the certificate was renewed, until %s", f"{renewed.ends:%Y-%m-%d}")

    def _take_over(self, renewed: _Servers) -> None:
        """Take the ports that the old servers are letting go of."""
        deadline = time.monotonic() + _BIND_SECONDS
        while True:
            try:
                renewed.bind()
            except ConfigError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
            else:
                return renewed.start()

    def _let_go(self) -> None:
        """Drop earlier servers that have answered everybody."""
        for servers, ended in list(self._past):
            if all(event.is_set() for event in ended):
                servers.wait()
                self._past.remove((servers, ended))

    def _complain(self, why: str) -> None:
        """Say that the certificate ends, not at every look."""
        now = time.monotonic()
        if now - self._complained < _COMPLAIN_SECONDS:
            return
        self._complained = now
        _log.error(
            "the certificate ends on %s and cannot be renewed: %s; nobody can connect after that",
            f"{self._current.ends:%Y-%m-%d}",
            why,
        )

    def stop(self) -> None:
        """End all calls, and listen no more."""
        everyone = [*(servers for servers, _ended in self._past), self._current]
        ending = [event for servers in everyone for event in servers.end(_STOP_SECONDS)]
        self._desk.wake()
        for ended in ending:
            ended.wait()

    def wait(self) -> None:
        """Wait until no caller is in the middle of anything."""
        for servers in (*(servers for servers, _ended in self._past), self._current):
            servers.wait()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _made(self) -> _Servers:
        """Return servers with a new certificate, which have no ports yet.

        Raises:
            ConfigError: The root is not valid now.
        """
        network, key = self._network, self._key
        own = issue_server_certificate(
            self._authority,
            key.public_key(),
            federation=self._desk.genesis.origin.federation,
            hosts=sorted({_host(network.address), _host(network.enrolment_address)}),
            now=self._now(),
            lifetime_days=_CERTIFICATE_DAYS,
        )
        made = _Servers(ends=certificate_ends(own))
        members, door = self._server(made, _WORKERS), self._server(made, _ENROLMENT_WORKERS)
        enrolment = EnrolmentService(self._desk, self._authority)
        self._add_services(members, made.stopping)
        for server in (members, door):
            enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, server)
        pem, root = private_pem(key), self._authority.certificate_pem
        for server, listen, asked in (
            (door, network.enrolment_listen, None),
            (members, network.listen, root),
        ):
            credentials = server_credentials(certificate_pem=own, key_pem=pem, root_pem=asked)
            made.ports.append((server, listen, credentials))
        return made

    def _server(self, made: _Servers, workers: int) -> grpc.Server:
        threads = ThreadPoolExecutor(workers, thread_name_prefix="call")
        made.callers.append(threads)
        return grpc.server(threads, interceptors=[self._places], options=SERVER_OPTIONS)

    def _add_services(self, members: grpc.Server, stopping: threading.Event) -> None:
        """Add what members call."""
        desk = self._desk
        rounds_pb2_grpc.add_RoundsServiceServicer_to_server(RoundsService(desk, stopping), members)
        transfer = TransferService(  # type: ignore[abstract] # its two large calls: wire.bulk
            desk, self._store, self._layout
        )
        add_transfer_service(transfer, transfer, members)
        add_archive_service(lambda context, n: readable_files(desk, context, n), members)
        add_admin_service(lambda context: operator_of(context, desk), members)
        add_ledger_service(lambda context: ledger_for(context, desk), members)
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, members)


def _host(address: str) -> str:
    return address.rsplit(":", 1)[0].strip("[]")


def _bind(server: grpc.Server, listen: str, credentials: grpc.ServerCredentials) -> None:
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(
            f"cannot listen on {listen}: the port is in use or not allowed; stop the other "
            "process or change [network] in coordinator.toml"
        )
