"""The coordinator's own certificate: renewed while members are connected, or said to end."""

import logging
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import grpc
import pytest

from tapestry.identity.certificates import certificate_ends
from tapestry.v1 import transfer_pb2
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.listening import Listening
from tapestry_coordinator.places import Places
from tapestry_coordinator.uploads import FragmentStore
from tapestry_demo.federation import free_port_pair
from tests.e2e.several_coordinators import again
from tests.wire.serving import CALL_SECONDS, Clock, Coordinator, Watch

DAY = 86_400.0


class SlowStore(FragmentStore):
    """A store whose callers wait for their turn until the test lets them go on."""

    def __init__(self, folder: Path, coordinator: Coordinator) -> None:
        super().__init__(folder, coordinator.small.layout)
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def turn(self, member_id: str) -> AbstractContextManager[None]:
        self.waiting.set()
        assert self.go_on.wait(CALL_SECONDS)
        return super().turn(member_id)


@pytest.fixture
def listen(coordinator: Coordinator, stack: ExitStack) -> Callable[..., Listening]:
    """Serve the coordinator's desk at the ports of its settings, by another clock."""

    def made(clock: Clock, store: FragmentStore | None = None) -> Listening:
        listening = Listening(
            coordinator.home,
            coordinator.desk,
            store or coordinator.store,
            coordinator.small.layout,
            Places(),
            clock=clock,
        )
        stack.callback(listening.wait)
        stack.callback(listening.stop)
        return listening

    return made


def with_ports(coordinator: Coordinator) -> int:
    """Write a free pair of ports into the settings; return the first."""
    home, port = coordinator.home, free_port_pair()
    settings = home.load_settings()
    network = settings.network.model_copy(
        update={"listen": f"127.0.0.1:{port}", "enrolment_listen": f"127.0.0.1:{port + 1}"}
    )
    settings_module.save(home.folder, settings.model_copy(update={"network": network}))
    return port


def shown_at(port: int) -> str:
    """The certificate that a port shows to whoever connects."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=CALL_SECONDS)


def ends_in_order(watch: Watch) -> bool:
    """Whether a stream of plans ends, and not with an error."""
    try:
        while True:
            watch.next()
    except StopIteration:
        return True


def test_it_is_renewed_while_members_are_connected_and_nothing_is_cut_off(
    coordinator: Coordinator, stack: ExitStack, listen: Callable[..., Listening]
) -> None:
    now, port = coordinator.clock.now, with_ports(coordinator)
    store = SlowStore(coordinator.home.contributions, coordinator)
    stack.callback(store.close)
    clock = Clock(now - 270 * DAY)
    listening = listen(clock, store)
    listening.start()
    listening.renew_if_due()
    assert listening.certificate_ends == pytest.approx(now + 128 * DAY, abs=2)
    first = shown_at(port + 1)
    line = stack.enter_context(coordinator.join("a").connected(address=f"127.0.0.1:{port}"))
    watch = line.watch()
    request = transfer_pb2.OpenUploadRequest(
        round=1, base_digest=bytes(32), codec="float32", fragment_digests=bytes(32)
    )
    pending = line.transfer.OpenUpload.future(request, timeout=CALL_SECONDS)
    assert store.waiting.wait(CALL_SECONDS)

    clock.forward(270 * DAY)
    listening.renew_if_due()
    assert ends_in_order(watch)
    second = shown_at(port + 1)
    assert second != first
    assert certificate_ends(second.encode()).timestamp() == listening.certificate_ends
    assert listening.certificate_ends == pytest.approx(now + 398 * DAY, abs=2)
    again(line.watch).end()
    assert not pending.done()
    store.go_on.set()
    error = pending.exception()
    assert isinstance(error, grpc.RpcError)
    assert "round 1 is not open" in error.details(), "answered by who was asked"
    listening.renew_if_due()
    assert shown_at(port + 1) == second


def test_a_root_that_ends_is_named_once(
    coordinator: Coordinator, listen: Callable[..., Listening], caplog: pytest.LogCaptureFixture
) -> None:
    ends = certificate_ends(coordinator.root_pem).timestamp()
    listening = listen(Clock(ends - 100 * DAY))
    assert listening.certificate_ends == listening.root_ends == ends
    with caplog.at_level(logging.ERROR):
        listening.renew_if_due()
        listening.renew_if_due()
    (record,) = caplog.records
    assert "cannot be renewed: the federation's root ends then" in record.getMessage()
