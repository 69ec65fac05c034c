"""What the page is told about members that are connected over mutual TLS."""

from typing import Any

import numpy as np
import pytest

from tapestry.errors import RejectedError
from tapestry.v1 import rounds_pb2
from tapestry.wire.statuses import errors_from_status
from tests.coordinator.small import forget_stores
from tests.wire.serving import CALL_SECONDS, Coordinator

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
let_go = pytest.fixture(scope="module", autouse=True)(forget_stores)


def live(coordinator: Coordinator) -> dict[str, Any]:
    return coordinator.desk.live.table(
        coordinator.desk.state,
        here=coordinator.desk.here(),
        rules=coordinator.desk.settings.rounds.rules(),
        refused=coordinator.places.refused,
        now=coordinator.clock(),
    )


def state(coordinator: Coordinator, member_id: str) -> str:
    return str(live(coordinator)["members"][member_id]["state"])


def test_reports_and_fragments_show_what_a_member_does(coordinator: Coordinator) -> None:
    ada, bo = coordinator.join("ada"), coordinator.join("bo")
    with ada.connected() as line, bo.connected() as other:
        watch, second = line.watch(), other.watch()
        plan = watch.until_plan()
        assert state(coordinator, "ada") == "waiting"
        line.rounds.Report(
            rounds_pb2.ReportRequest(
                round=plan.round, step=3, steps=10, loss=1.5, tokens_per_second=80.0
            ),
            timeout=CALL_SECONDS,
        )
        shown = live(coordinator)["members"]["ada"]
        assert (shown["state"], shown["step"], shown["loss"]) == ("training", 3, 1.5)
        envelope = line.sent(plan, np.float32([0.5, 0.25]))
        assert state(coordinator, "ada") == "uploading"
        assert live(coordinator)["members"]["ada"]["bytes_round"] == 8
        line.commit(envelope)
        assert state(coordinator, "ada") == "contributed"
        with pytest.raises(RejectedError), errors_from_status("the coordinator"):
            other.put(99, 0, b"\0" * 8)
        assert live(coordinator)["refused"] == {"failed_precondition": 1}
        watch.end()
        second.end()
