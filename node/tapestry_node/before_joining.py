"""What would keep a machine from taking part, found before its institution joins.

The invitation is not used up: one TLS connection is made to see who answers, and nothing is sent
over it. A federation's model is not known to strangers, so its size has to be told.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from tapestry.data.sources import plain_spec
from tapestry.identity.certificates import SERVER_NAME, format_fingerprint
from tapestry.identity.invitations import Invitation
from tapestry_node.hardware import (
    Finding,
    Model,
    disk,
    guarded,
    isolation,
    memory,
    open_files,
    text,
)

_CONNECT_SECONDS = 10.0


def examine_before(
    folder: Path,
    data: Sequence[Path],
    invitation: Invitation | None,
    *,
    parameters: int,
    now: float,
) -> Iterator[Finding]:
    """Look at everything that can be looked at without a membership.

    Args:
        folder: Where the node is to be; it need not exist.
        data: The institution's text; none: not looked at.
        invitation: As it came; None: the line is not looked at.
        parameters: Of the federation's model, all trained; 0: not known.
        now: Unix seconds.
    """
    if invitation is not None:
        yield _invitation(invitation, now=now)
    if data:
        yield from guarded(
            "text", lambda: text([file for _number, file in plain_spec(data).files()])
        )
    yield from guarded("open files", open_files)
    yield from guarded("isolation", isolation)
    if invitation is not None:
        yield _line(invitation)
    model = Model(parameters, parameters)
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    yield from guarded("disk", lambda: disk(there, model))
    yield from guarded("memory", lambda: memory(model))


def _invitation(invitation: Invitation, *, now: float) -> Finding:
    """Compare its dates, and those of the root in it, with the clock."""
    here = datetime.fromtimestamp(now, UTC)
    ends = datetime.fromtimestamp(invitation.expires_at, UTC)
    root = x509.load_der_x509_certificate(invitation.root_certificate)
    found = (
        f"for {invitation.member_id} in {invitation.federation}, until {ends:%Y-%m-%d %H:%M} UTC; "
        f"root fingerprint {format_fingerprint(invitation.root_fingerprint)}"
    )
    if here < root.not_valid_before_utc:
        return Finding(
            about="invitation",
            verdict="problem",
            found=f"{found}; this machine's clock says {here:%Y-%m-%d %H:%M}, before the "
            "federation was founded",
            remedy="set the clock (chrony, ntpd, or timedatectl set-ntp true)",
        )
    if here >= ends:
        return Finding(
            about="invitation",
            verdict="problem",
            found=f"{found}; this machine's clock says {here:%Y-%m-%d %H:%M}",
            remedy="ask for a new one, or set the clock if that is wrong",
        )
    return Finding(
        about="invitation",
        verdict="ok",
        found=found,
        remedy="compare the fingerprint with whoever invited you, by another channel",
    )


def _line(invitation: Invitation) -> Finding:
    """See whether the coordinator of the invitation's federation answers at its address."""
    about, address = "coordinator", invitation.address
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(
        cadata=ssl.DER_cert_to_PEM_cert(invitation.root_certificate)
    )
    context.set_alpn_protocols(["h2"])
    began = time.perf_counter()
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as line,
            context.wrap_socket(line, server_hostname=SERVER_NAME),
        ):
            seconds = time.perf_counter() - began
    except ssl.SSLCertVerificationError as error:
        return Finding(
            about=about,
            verdict="problem",
            found=f"{address} is not the coordinator of the invitation's federation: "
            f"{error.verify_message}",
            remedy="somebody is in between, the address is another's, or a clock is wrong: stop, "
            "and ask whoever invited you",
        )
    except OSError as error:
        return Finding(
            about=about,
            verdict="problem",
            found=f"{address} does not answer: {error.strerror or error}",
            remedy="let connections to that port, and to the one before it, out of the firewall",
        )
    found = f"{address}, where members join, answers in {1e3 * seconds:,.0f} ms as the federation's"
    return Finding(
        about=about, verdict="ok", found=f"{found}; the port for members is told by joining"
    )
