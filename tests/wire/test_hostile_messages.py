"""Messages that a member of the federation has made wrong, over real gRPC: answered in our words.

A handler that lets an error of another kind out answers UNKNOWN, which none of these may.
"""

import json
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapestry.checkpoints.statements import Contribution
from tapestry.identity.envelopes import sign
from tapestry.params.fragments import fragment_digest
from tapestry.v1 import admin_pb2, rounds_pb2, transfer_pb2
from tapestry.wire.channels import open_channel
from tapestry.wire.messages import envelope_message
from tapestry_coordinator.roster import OPERATOR
from tests.coordinator.small import encode
from tests.damaging import changed, damaged, text_of
from tests.wire.serving import CALL_SECONDS, Coordinator, Member, gathered
from tests.wire.test_policy import contribute

UNDECODABLE = "deserializing request"
MOST_ANSWERS = 50

bounded = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def ask(channel: grpc.Channel, method: str, raw: bytes, *, kind: str = "unary_unary") -> None:
    """Send bytes as a request; fail if the answer is that of a handler that broke."""
    call: Any = getattr(channel, kind)(f"/tapestry.v1.{method}")
    try:
        if kind == "unary_stream":
            stream = call(raw, timeout=CALL_SECONDS)
            for _answer, _number in zip(stream, range(MOST_ANSWERS), strict=False):
                pass
            stream.cancel()
        else:
            call(iter([raw]) if kind == "stream_unary" else raw, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        refusal: Any = error
        code, said = refusal.code(), refusal.details() or ""
        assert code is not grpc.StatusCode.UNKNOWN, (method, said)
        assert code is not grpc.StatusCode.INTERNAL or UNDECODABLE in said, (method, said)
        assert len(said) < 4000


def test_messages_of_any_bytes_are_answered_and_the_round_goes_on(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b", "c")
    operator = stack.enter_context(coordinator.join("op", role=OPERATOR).connected())
    fragments = encode(np.float32([0.5, 0.5]), coordinator.small.layout, plan.codec)
    digests = b"".join(map(fragment_digest, fragments))
    base, file = bytes.fromhex(plan.base), bytes.fromhex(coordinator.desk.genesis.genesis.layout)
    contribution = lines["b"].declared(plan, fragments)
    stream, upload = "unary_stream", "stream_unary"
    member: list[tuple[str, Any, str]] = [
        ("RoundsService/Report", rounds_pb2.ReportRequest(round=1, step=1, steps=9, loss=2.5), ""),
        ("RoundsService/Decline", rounds_pb2.DeclineRequest(round=7, reason="no"), ""),
        ("RoundsService/AnswerExclusion", rounds_pb2.AnswerExclusionRequest(id=1, answer="x"), ""),
        (
            "RoundsService/SubmitEvaluation",
            rounds_pb2.SubmitEvaluationRequest(
                manifest_digest=base, bits_per_byte=2.5, held_out_bytes=9, language="fr"
            ),
            "",
        ),
        ("TransferService/Describe", transfer_pb2.DescribeRequest(round=0), ""),
        ("TransferService/Lineage", transfer_pb2.LineageRequest(last_round=0), stream),
        ("TransferService/Fetch", transfer_pb2.FetchRequest(digest=file, offset_bytes=1), stream),
        (
            "TransferService/OpenUpload",
            transfer_pb2.OpenUploadRequest(
                round=1, base_digest=base, codec=plan.codec, fragment_digests=digests
            ),
            "",
        ),
        (
            "TransferService/PutFragment",
            transfer_pb2.PutFragmentRequest(round=1, index=0, data=fragments[0]),
            upload,
        ),
        (
            "TransferService/Commit",
            transfer_pb2.CommitRequest(contribution=envelope_message(contribution)),
            "",
        ),
    ]
    operating: list[tuple[str, Any, str]] = [
        ("AdminService/Status", admin_pb2.StatusRequest(view="log", last=3), ""),
        ("AdminService/Invite", admin_pb2.InviteRequest(member_id="zz", role="observer"), ""),
        ("AdminService/Revoke", admin_pb2.RevokeRequest(member_id="nobody"), ""),
    ]

    @settings(bounded, max_examples=200)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        method, message, kind = data.draw(st.sampled_from([*member, *operating]))
        channel = operator.channel if method.startswith("Admin") else lines["b"].channel
        raw = data.draw(damaged(message.SerializeToString()))
        ask(channel, method, raw, kind=kind or "unary_unary")

    check()
    for name in ("a", "c"):
        contribute(lines[name], coordinator.plan)
    assert {"a", "c"} <= set(coordinator.desk.state.arrived)


def test_a_contribution_of_any_signed_content_is_answered(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    fragments = encode(np.float32([0.5, 0.5]), coordinator.small.layout, plan.codec)
    lines["b"].sent(plan, np.float32([0.5, 0.5]))
    valid = json.loads(lines["b"].declared(plan, fragments).payload)
    key = lines["b"].member.signing_key

    @bounded
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        payload = text_of(data.draw(changed(valid)))
        envelope = envelope_message(sign(Contribution.payload_type, payload, key))
        request = transfer_pb2.CommitRequest(contribution=envelope)
        ask(lines["b"].channel, "TransferService/Commit", request.SerializeToString())

    check()
    contribute(lines["a"], plan)
    assert "a" in coordinator.desk.state.arrived


def test_a_request_to_enrol_of_any_content_is_answered(coordinator: Coordinator) -> None:
    member = Member(coordinator, "c")
    invitation = coordinator.invite("c")
    request = member.request()
    valid = member.enrolment(invitation).SerializeToString()

    with open_channel(coordinator.door, root_pem=coordinator.root_pem) as channel:

        @bounded
        @given(data=st.data())
        def check(data: st.DataObject) -> None:
            if data.draw(st.booleans()):
                raw = data.draw(damaged(valid))
            else:
                csr = data.draw(damaged(request).filter(lambda made: made != request))
                raw = member.enrolment(invitation, certificate_request=csr).SerializeToString()
            ask(channel, "EnrolmentService/Enrol", raw)

        check()
