"""Our errors as gRPC statuses, and back.

The status carries the sentence for a person; the trailing metadata carries the reason for a
program: the family of the error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tapestry.errors import (
    ConfigError,
    RejectedError,
    TapestryError,
    UnavailableError,
    UntrustedError,
)

_REASON_KEY = "tapestry-reason"
_MAX_DETAILS = 1000

_CODES: list[tuple[type[TapestryError], str, grpc.StatusCode]] = [
    (UnavailableError, "unavailable", grpc.StatusCode.UNAVAILABLE),
    (RejectedError, "rejected", grpc.StatusCode.FAILED_PRECONDITION),
    (UntrustedError, "untrusted", grpc.StatusCode.PERMISSION_DENIED),
    (ConfigError, "config", grpc.StatusCode.INVALID_ARGUMENT),
]
_BY_REASON = {reason: family for family, reason, _code in _CODES}
_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # the other side ended a call that had stalled
}


@contextmanager
def status_from_errors(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn an error of ours, or of the disk, into the status of the call.

    A bug keeps its traceback.
    """
    try:
        yield
    except OSError as error:
        context.set_trailing_metadata(((_REASON_KEY, "unavailable"),))
        cause = error.strerror or type(error).__name__
        context.abort(grpc.StatusCode.UNAVAILABLE, f"the coordinator cannot do this now: {cause}")
    except TapestryError as error:
        for family, reason, code in _CODES:
            if isinstance(error, family):
                context.set_trailing_metadata(((_REASON_KEY, reason),))
                context.abort(code, str(error)[:_MAX_DETAILS])
        raise


@contextmanager
def errors_from_status(address: str) -> Iterator[None]:
    """Turn the status of a failed call into an error of ours.

    Args:
        address: Whom the call was made to; named in the message if nobody answered.

    Raises:
        UnavailableError: Nobody answers, or not in time; the call may be repeated.
        UntrustedError: TLS failed: the other side, or we, are not of this federation.
        RejectedError: The other side refused, with its reason.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _error_of(error, address) from error


def _error_of(error: grpc.RpcError, address: str) -> TapestryError:
    code, details = error.code(), error.details() or ""
    metadata = dict(error.trailing_metadata() or ())  # type: ignore[arg-type, var-annotated]
    family = _BY_REASON.get(str(metadata.get(_REASON_KEY)))
    if family is not None:
        return family(details)
    failed = _handshake_error(details.lower(), address)
    if failed is not None:
        return failed
    if code in _TRANSIENT:
        return UnavailableError(f"{address} does not answer: {_short(details)}")
    return RejectedError(f"{address} refused the call ({code.name.lower()}): {_short(details)}")


def _handshake_error(details: str, address: str) -> TapestryError | None:
    """Return why TLS failed, by gRPC's words in lower case; None if it did not."""
    if "certificate is not yet valid" in details or "certificate has expired" in details:
        return UnavailableError(
            f"{address} shows a certificate that by this machine's clock is not valid now: compare "
            "the clocks of both machines, and mend the one that is wrong"
        )
    if "certificate_verify_failed" in details or "certificate verify failed" in details:
        return UntrustedError(
            f"{address} is not the coordinator of this federation: its certificate is not issued "
            "by the root in the invitation; compare the fingerprint with whoever invited you"
        )
    if "alert" in details and "ssl" in details:
        return UntrustedError(
            f"{address} does not accept this node's certificate: it may have expired; ask the "
            "coordinator's operator for a new invitation"
        )
    if "failed to connect" in details and "socket closed" in details:
        return UnavailableError(
            f"{address} hangs up before anything is said: it has too many connections now, or does "
            "not take this certificate: it may have expired or be of another federation, or one of "
            "the two clocks may be wrong"
        )
    return None


def _short(details: str) -> str:
    """Return the telling end of gRPC's nested messages."""
    last = details.rsplit("Last error: ", 1)[-1]
    return last.replace("UNKNOWN: ", "").replace("UNAVAILABLE: ", "")[:200] or "no details"
