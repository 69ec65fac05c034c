"""The audit of a node's folder: rounds, rules, persons, and what did not get out."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tapestry.errors import UntrustedError
from tapestry.v1 import (
    admin_pb2,
    archive_pb2,
    enrolment_pb2,
    ledger_pb2,
    rounds_pb2,
    transfer_pb2,
)
from tapestry.wire.egress import BLOCKED, EgressLedger
from tapestry_node.auditing import Evidence, audit
from tapestry_node.calls import CARRIES
from tapestry_node.home import NodeHome
from tapestry_node.keeping import keep_policy, read_policy
from tapestry_node.policy import Policy

STRICT = Policy(min_inner_steps=50, max_norm=2.5)


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    return made


def audited(home: NodeHome) -> dict[str, Any]:
    return audit(
        Evidence(
            ledger=home.egress,
            kernel=home.kernel,
            policies=home.policies,
            receipts=home.receipts,
            coordinator_key=b"\1" * 32,
            member_key=b"\2" * 32,
        )
    )


def left(home: NodeHome) -> None:
    with closing(EgressLedger(home.egress, to="a:1", clock=lambda: 9.0)) as ledger:
        ledger.record("/tapestry.v1.EnrolmentService/Enrol", b"e" * 10)
        ledger.allowed_by = STRICT.digest()
        ledger.record("/tapestry.v1.TransferService/OpenUpload", b"o" * 20, round_number=4)
        ledger.record(BLOCKED + "socket.connect", b"", to="192.0.2.1:443")
        ledger.allowed_by = f"{STRICT.digest()} approved by head of archives"
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"p" * 30, round_number=4)
        ledger.record("/tapestry.v1.TransferService/PutFragment", b"q" * 40, round_number=5)


def test_it_adds_up_by_round_policy_and_person_and_lists_what_was_stopped(home: NodeHome) -> None:
    keep_policy(home, STRICT)
    left(home)
    found = audited(home)
    assert found["by_round"] == {
        "0": {"EnrolmentService/Enrol": {"requests": 1, "bytes": 10}},
        "4": {
            "TransferService/OpenUpload": {"requests": 1, "bytes": 20},
            "TransferService/PutFragment": {"requests": 1, "bytes": 30},
        },
        "5": {"TransferService/PutFragment": {"requests": 1, "bytes": 40}},
    }
    policy = found["policies"][STRICT.digest()]
    assert (policy["requests"], policy["bytes"]) == (3, 90)
    assert policy["rules"] == STRICT.model_dump(mode="json")
    (approval,) = found["approvals"]
    assert (approval["by"], approval["rounds"], approval["bytes"]) == (
        "head of archives",
        [4, 5],
        70,
    )
    (blocked,) = found["blocked"]
    assert (blocked["to"], blocked["line"]) == ("192.0.2.1:443", 3)
    assert (found["requests"], found["bytes"], found["problems"]) == (4, 100, [])


def test_rules_that_were_changed_afterwards_are_named(home: NodeHome) -> None:
    keep_policy(home, STRICT)
    left(home)
    (path,) = home.policies.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_policy(path)["max_norm"] == 2.5
    path.write_text(path.read_text().replace("max_norm = 2.5", "max_norm = 9.5"))
    with pytest.raises(UntrustedError, match="was changed"):
        read_policy(path)
    (problem,) = audited(home)["problems"]
    assert f"{path}: was changed" in problem


def test_totals_end_where_the_chain_is_broken(home: NodeHome) -> None:
    left(home)
    lines = home.egress.read_bytes().splitlines(keepends=True)
    home.egress.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    found = audited(home)
    assert (found["chain"], found["broken_line"], found["bytes"]) == ("broken", 4, 30)
    assert "number 4 stands where 3 belongs" in found["problems"][0]


def test_a_receipt_that_nobody_signed_is_named(home: NodeHome) -> None:
    left(home)
    (home.receipts / "round-000004.json").write_text('{"payload": "", "payloadType": "x"}')
    (problem,) = audited(home)["problems"]
    assert "receipt round-000004.json" in problem


def test_every_call_of_a_member_is_explained_to_whoever_reads_the_report() -> None:
    calls = {
        f"{service.name}/{method.name}"
        for module in (admin_pb2, archive_pb2, enrolment_pb2, ledger_pb2, rounds_pb2, transfer_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(CARRIES) == calls
