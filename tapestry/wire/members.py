"""A member's connection, from its identity folder."""

import grpc

from tapestry.identity.membership import IdentityFolder, Membership
from tapestry.wire.channels import open_channel


def open_member_channel(membership: Membership, identity: IdentityFolder) -> grpc.Channel:
    """Return a channel over mutual TLS with the member's certificate; nothing is sent yet."""
    return open_channel(
        membership.address,
        root_pem=identity.root_pem(),
        certificate_pem=identity.certificate_pem(),
        key_pem=identity.tls_key_pem(),
    )
