"""Who calls: taken from the certificate of the connection, never from a field.

It is looked up at every call: a revoked member is refused on a connection that was open before.
"""

from datetime import UTC, datetime

import grpc

from tapestry.errors import UntrustedError
from tapestry.identity.certificates import read_member_certificate
from tapestry_coordinator.crowd import Refusals
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.roster import ACTIVE, CONTRIBUTOR, LEFT, OPERATOR, Member

_refusals = Refusals()
_MAX_TEXT = 500


def identify(context: grpc.ServicerContext, desk: Desk) -> Member:
    """Return the member whose certificate opened this connection; log it if that is none.

    Raises:
        UntrustedError: Not a member of this federation, or not any more.
    """
    try:
        return identified(context, desk, statuses=(ACTIVE,))
    except UntrustedError as error:
        _refusals.note(str(error), peer=context.peer())
        raise


def identified(context: grpc.ServicerContext, desk: Desk, *, statuses: tuple[str, ...]) -> Member:
    """Return the caller as a member that has one of these statuses.

    Raises:
        UntrustedError: It is none.
    """
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    certificate = read_member_certificate(bytes(pem), federation=desk.genesis.origin.federation)
    member = desk.registry.member(certificate.member_id)
    if member is None or member.status not in statuses:
        has_left = member is not None and member.status == LEFT
        says = "has left this federation" if has_left else "is not a member of this federation"
        raise UntrustedError(
            f"{certificate.member_id} {says}{'' if has_left else ' any more'}: ask the "
            "coordinator's operator"
        )
    now = datetime.fromtimestamp(desk.calendar(), UTC)
    if not certificate.not_before <= now < certificate.not_after:
        raise UntrustedError(
            f"{member.member_id}: the certificate is valid until "
            f"{certificate.not_after:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M}: "
            "compare the clocks, or ask for a new invitation"
        )
    if f"{certificate.serial:x}" not in (member.certificate_serial, member.previous_serial):
        raise UntrustedError(
            f"{member.member_id}: the certificate was replaced by a newer one: use that, or ask "
            "for a new invitation"
        )
    return member


def require_contributor(member: Member) -> None:
    """Refuse what only members that train may do.

    Raises:
        UntrustedError: The member observes.
    """
    if member.role != CONTRIBUTOR:
        raise UntrustedError(
            f"{member.member_id} is in this federation as {member.role}, and does not contribute: "
            "the coordinator's operator can invite it anew as contributor"
        )


def operator_of(context: grpc.ServicerContext, desk: Desk) -> Operator:
    """Return what an operator acts through.

    Raises:
        UntrustedError: The caller is a member without that role, or none.
    """
    member = identify(context, desk)
    if member.role != OPERATOR:
        raise UntrustedError(
            f"{member.member_id} is in this federation as {member.role}: only an operator may do "
            "this"
        )
    return Operator(desk.home, desk.registry, who=member.member_id, clock=desk.calendar)


def one_line(text: str) -> str:
    """Return text from outside as one short printable line."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_MAX_TEXT]
