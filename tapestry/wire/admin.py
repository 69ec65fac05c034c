"""What an operator does from afar: both ends of AdminService."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from tapestry.errors import RejectedError
from tapestry.v1 import admin_pb2, admin_pb2_grpc
from tapestry.wire.limits import CALL_SECONDS, MEBIBYTE
from tapestry.wire.statuses import errors_from_status, status_from_errors

MAX_ROWS = 1000


class Operates(Protocol):
    """What an operator can do, here or from afar; every answer is a table for JSON."""

    def show(self, view: str, *, last: int) -> dict[str, Any]:
        """Return how things stand."""

    def pause(self, reason: str) -> dict[str, Any]:
        """Let no further round open."""

    def resume(self) -> dict[str, Any]:
        """Let rounds open again."""

    def invite(self, member_id: str, *, role: str, replaces: bool) -> dict[str, Any]:
        """Make an invitation."""

    def revoke(self, member_id: str) -> dict[str, Any]:
        """End a membership."""


class AdminClient:
    """An operator's side, over a channel with its certificate."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        """Speak over `channel`, whose other end is at `address`."""
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._address = address

    def show(self, view: str, *, last: int) -> dict[str, Any]:
        """Return how things stand."""
        return self._ask(self._stub.Status, admin_pb2.StatusRequest(view=view, last=last))

    def pause(self, reason: str) -> dict[str, Any]:
        """Let no further round open."""
        return self._ask(self._stub.Pause, admin_pb2.PauseRequest(reason=reason))

    def resume(self) -> dict[str, Any]:
        """Let rounds open again."""
        return self._ask(self._stub.Resume, admin_pb2.ResumeRequest())

    def invite(self, member_id: str, *, role: str, replaces: bool) -> dict[str, Any]:
        """Make an invitation."""
        request = admin_pb2.InviteRequest(member_id=member_id, role=role, replaces=replaces)
        return self._ask(self._stub.Invite, request)

    def revoke(self, member_id: str) -> dict[str, Any]:
        """End a membership."""
        return self._ask(self._stub.Revoke, admin_pb2.RevokeRequest(member_id=member_id))

    def _ask(self, call: Any, request: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the five
        with errors_from_status(self._address):
            text = call(request, timeout=CALL_SECONDS).table
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RejectedError(f"{self._address} answered with no JSON: {error}") from error
        if not isinstance(table, dict):
            raise RejectedError(f"{self._address} answered with JSON that is no table")
        return table


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The coordinator's side; who may call at all is for `operator_of` to say."""

    def __init__(self, operator_of: Callable[[grpc.ServicerContext], Operates]) -> None:
        """Serve callers.

        Args:
            operator_of: What to act through for a caller; raises UntrustedError for any other.
        """
        self._operator_of = operator_of

    def Status(  # noqa: N802 - gRPC's name
        self, request: admin_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> admin_pb2.StatusResponse:
        """Show a table."""
        with status_from_errors(context):
            last = min(max(1, request.last), MAX_ROWS)
            table = self._operator_of(context).show(request.view, last=last)
            return admin_pb2.StatusResponse(table=_text(table))

    def Pause(  # noqa: N802
        self, request: admin_pb2.PauseRequest, context: grpc.ServicerContext
    ) -> admin_pb2.PauseResponse:
        """Let no further round open."""
        with status_from_errors(context):
            table = self._operator_of(context).pause(request.reason)
            return admin_pb2.PauseResponse(table=_text(table))

    def Resume(  # noqa: N802
        self,
        request: admin_pb2.ResumeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> admin_pb2.ResumeResponse:
        """Let rounds open again."""
        with status_from_errors(context):
            table = self._operator_of(context).resume()
            return admin_pb2.ResumeResponse(table=_text(table))

    def Invite(  # noqa: N802
        self, request: admin_pb2.InviteRequest, context: grpc.ServicerContext
    ) -> admin_pb2.InviteResponse:
        """Make an invitation."""
        with status_from_errors(context):
            operator = self._operator_of(context)
            table = operator.invite(request.member_id, role=request.role, replaces=request.replaces)
            return admin_pb2.InviteResponse(table=_text(table))

    def Revoke(  # noqa: N802
        self, request: admin_pb2.RevokeRequest, context: grpc.ServicerContext
    ) -> admin_pb2.RevokeResponse:
        """End a membership."""
        with status_from_errors(context):
            table = self._operator_of(context).revoke(request.member_id)
            return admin_pb2.RevokeResponse(table=_text(table))


def _text(table: dict[str, Any]) -> str:
    """Return a table as JSON that fits into one message.

    Raises:
        RejectedError: It does not.
    """
    text = json.dumps(table)
    if len(text) > 4 * MEBIBYTE:  # all of it is ASCII
        raise RejectedError("the table is too long for one answer: ask for fewer rows (--last)")
    return text


def add_admin_service(
    operator_of: Callable[[grpc.ServicerContext], Operates], server: grpc.Server
) -> None:
    """Serve operators on `server`."""
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(operator_of), server)
