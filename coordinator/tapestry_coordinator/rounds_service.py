"""The rounds service: plans out; progress, refusals and evaluations in."""

import logging
import threading
from collections.abc import Iterator

import grpc

from tapestry.errors import RejectedError
from tapestry.v1 import rounds_pb2, rounds_pb2_grpc
from tapestry.wire.limits import HEARTBEAT_SECONDS
from tapestry.wire.messages import digest_value, envelope_message
from tapestry.wire.statuses import status_from_errors
from tapestry_coordinator.announcing import Announcement
from tapestry_coordinator.callers import identify, one_line
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.testimony import StoredEvaluation

_log = logging.getLogger(__name__)
_LISTED = 100
_MAX_ID = 2**62


class RoundsService(rounds_pb2_grpc.RoundsServiceServicer):
    """Plans out; progress, refusals and evaluations in."""

    def __init__(self, desk: Desk, stopping: threading.Event) -> None:
        """Serve until `stopping` is set."""
        self._desk = desk
        self._stopping = stopping

    def WatchPlans(
        self, request: rounds_pb2.WatchPlansRequest, context: grpc.ServicerContext
    ) -> Iterator[rounds_pb2.WatchPlansResponse]:
        """Send the present state, and again after every change and at every heartbeat."""
        with status_from_errors(context):
            member_id = identify(context, self._desk).member_id
            version, response = -1, rounds_pb2.WatchPlansResponse()
            with self._desk.present(member_id) as is_newest:
                while context.is_active() and not self._stopping.is_set() and is_newest():
                    told = self._desk.announcement(
                        member_id, after=version, timeout_seconds=HEARTBEAT_SECONDS
                    )
                    identify(context, self._desk)
                    if told is not None:
                        version, response = told.version, _told_message(told)
                    if is_newest():
                        yield response

    def Report(
        self, request: rounds_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.ReportResponse:
        """Note a member's progress."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            now = self._desk.clock()
            self._desk.registry.seen(member.member_id, now=now)
            self._desk.live.reported(
                member.member_id,
                round_number=request.round,
                step=request.step,
                steps=request.steps,
                loss=request.loss,
                tokens_per_second=request.tokens_per_second,
                now=now,
            )
        _log.debug(
            "round %d: %s at step %d of %d, loss %.3f, %.0f tokens/s",
            request.round,
            member.member_id,
            request.step,
            request.steps,
            request.loss,
            request.tokens_per_second,
        )
        return rounds_pb2.ReportResponse()

    def Decline(
        self, request: rounds_pb2.DeclineRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.DeclineResponse:
        """Note that a member's policy forbids the plan."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            reason = one_line(request.reason)
            self._desk.inbox.decline(member.member_id, round_number=request.round, reason=reason)
        return rounds_pb2.DeclineResponse()

    def ListExclusions(
        self, request: rounds_pb2.ListExclusionsRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.ListExclusionsResponse:
        """Return what was left out of what the caller sent."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            found = self._desk.registry.exclusions(member.member_id, last=_LISTED)
        return rounds_pb2.ListExclusionsResponse(
            exclusions=[
                rounds_pb2.Exclusion(
                    id=one.id,
                    round=one.round,
                    kind=one.kind,
                    reason=one.reason,
                    at=one.at,
                    answer=one.answer,
                )
                for one in found
            ]
        )

    def AnswerExclusion(
        self, request: rounds_pb2.AnswerExclusionRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.AnswerExclusionResponse:
        """Keep what the caller says to an exclusion of its own."""
        with status_from_errors(context):
            member_id = identify(context, self._desk).member_id
            text, now = one_line(request.answer), self._desk.clock()
            self._desk.registry.answer(min(request.id, _MAX_ID), member_id, text, now=now)
        return rounds_pb2.AnswerExclusionResponse()

    def SubmitEvaluation(
        self, request: rounds_pb2.SubmitEvaluationRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.SubmitEvaluationResponse:
        """Note what a member measured of a published checkpoint."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            digest = digest_value(request.manifest_digest, what="manifest_digest")
            number = self._desk.round_of(digest)
            if number is None:
                raise RejectedError(
                    f"no checkpoint of this federation has the digest {digest[:16]}"
                )
            if not 0 <= request.bits_per_byte <= 64 or not 0 < request.held_out_bytes < 2**53:
                raise RejectedError(
                    f"{request.bits_per_byte} bits per byte over {request.held_out_bytes} bytes "
                    "is not a measurement"
                )
            self._desk.evaluate(
                StoredEvaluation(
                    round=number,
                    member_id=member.member_id,
                    language=one_line(request.language)[:64],
                    bits_per_byte=request.bits_per_byte,
                    held_out_bytes=request.held_out_bytes,
                )
            )
        return rounds_pb2.SubmitEvaluationResponse()


def _told_message(told: Announcement) -> rounds_pb2.WatchPlansResponse:
    return rounds_pb2.WatchPlansResponse(
        plan=None if told.plan is None else envelope_message(told.plan),
        manifest=envelope_message(told.manifest),
        candidate=None if told.candidate is None else envelope_message(told.candidate),
        is_finished=told.is_finished,
        notice=told.notice,
        ledger_head=told.ledger_head,
    )
