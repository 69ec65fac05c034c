"""Our values as messages, and back."""

import hashlib

from tapestry.errors import RejectedError
from tapestry.identity.envelopes import Envelope
from tapestry.params.fragments import DIGEST_BYTES
from tapestry.v1 import envelope_pb2, transfer_pb2


def envelope_message(envelope: Envelope) -> envelope_pb2.SignedEnvelope:
    """Return `envelope` as a message."""
    return envelope_pb2.SignedEnvelope(
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        key_id=envelope.key_id,
        signature=envelope.signature,
    )


def envelope_value(message: envelope_pb2.SignedEnvelope) -> Envelope:
    """Return the envelope in `message`; nothing about it is verified yet."""
    return Envelope(
        payload_type=message.payload_type,
        payload=message.payload,
        key_id=message.key_id,
        signature=message.signature,
    )


def digest_value(data: bytes, *, what: str) -> str:
    """Return a digest from the wire in hex.

    Raises:
        RejectedError: It does not have 32 bytes.
    """
    if len(data) != DIGEST_BYTES:
        raise RejectedError(f"{what}: a digest has {DIGEST_BYTES} bytes, got {len(data)}")
    return data.hex()


def commit_digest(envelope: Envelope) -> str:
    """Return the hex SHA-256 that the egress ledger has for committing a signed contribution."""
    request = transfer_pb2.CommitRequest(contribution=envelope_message(envelope))
    return hashlib.sha256(request.SerializeToString()).hexdigest()
