"""A member's connection, from its identity folder, with its egress ledger in between."""

import grpc

from tapestry.identity.membership import IdentityFolder, Membership
from tapestry.wire.allocation import reuse_large_blocks
from tapestry.wire.channels import open_channel
from tapestry.wire.egress import EgressInterceptor, EgressLedger


def open_member_channel(
    membership: Membership, identity: IdentityFolder, ledger: EgressLedger
) -> grpc.Channel:
    """Return a channel over mutual TLS with the member's certificate; nothing is sent yet.

    Every request on it is written to `ledger` first.
    """
    reuse_large_blocks()
    certificate, key = identity.tls_pair()
    channel = open_channel(
        membership.address,
        root_pem=identity.root_pem(),
        certificate_pem=certificate,
        key_pem=key,
    )
    return grpc.intercept_channel(channel, EgressInterceptor(ledger))
