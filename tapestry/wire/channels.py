"""Connections: mutual TLS by default, with the federation's own root as the only trust.

A node checks that the other side is *the coordinator of its federation* by the name in its
certificate, `SERVER_NAME`, and not by the address it dialled: addresses may change and pass
through a firewall's translation, the root of trust does not.
"""

import grpc

from tapestry.identity.certificates import SERVER_NAME
from tapestry.wire.limits import CHANNEL_OPTIONS


def open_channel(
    address: str,
    *,
    root_pem: bytes,
    certificate_pem: bytes | None = None,
    key_pem: bytes | None = None,
) -> grpc.Channel:
    """Return a channel to the coordinator at `address`; nothing is sent yet.

    Args:
        address: host:port.
        root_pem: The federation's root certificate.
        certificate_pem: The member's certificate; None only for enrolment.
        key_pem: Its private key.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=root_pem, private_key=key_pem, certificate_chain=certificate_pem
    )
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.secure_channel(address, credentials, options=options)


def server_credentials(
    *, certificate_pem: bytes, key_pem: bytes, root_pem: bytes | None
) -> grpc.ServerCredentials:
    """Return the coordinator's side of TLS.

    Args:
        certificate_pem: The coordinator's certificate.
        key_pem: Its private key.
        root_pem: Clients must show a certificate of this root; None only for enrolment.
    """
    return grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)],
        root_certificates=root_pem,
        require_client_auth=root_pem is not None,
    )
