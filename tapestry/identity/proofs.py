"""That a member's two keys belong to one member, for whoever has only files.

At enrolment the coordinator learns both keys. Later a reader has the member's certificate, which
the federation's root signed and which names the member, and a signature by that certificate's key
over the member's signing key.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tapestry.errors import UntrustedError
from tapestry.identity.certificates import UNREADABLE, MemberCertificate, read_member_certificate
from tapestry.identity.envelopes import pre_authentication_encoding

_TYPE = "application/vnd.tapestry.member-key.v1"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def prove_key(tls_key: ec.EllipticCurvePrivateKey, signing_key: bytes) -> bytes:
    """Return the signature of a member's TLS key over its raw Ed25519 public key."""
    return tls_key.sign(pre_authentication_encoding(_TYPE, signing_key), _ALGORITHM)


def require_key_proof(
    proof: bytes, signing_key: bytes, *, certificate_pem: bytes, root_pem: bytes, federation: str
) -> MemberCertificate:
    """Return what the certificate says of whoever holds `signing_key`.

    Dates are not looked at: the proof is about the past.

    Args:
        proof: As `prove_key` made it.
        signing_key: Raw Ed25519 public key.
        certificate_pem: The member's.
        root_pem: The federation's root, which the caller trusts.
        federation: Its name.

    Raises:
        UntrustedError: The root did not issue the certificate, or its key did not sign.
    """
    member = read_member_certificate(certificate_pem, federation=federation)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem))
    except (InvalidSignature, *UNREADABLE) as error:
        raise UntrustedError(
            f"the certificate of {member.member_id} was not issued by the root of {federation}"
        ) from error
    key = certificate.public_key()
    refusal = UntrustedError(
        f"{member.member_id} did not say by its certificate that this signing key is its own"
    )
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise refusal
    try:
        key.verify(proof, pre_authentication_encoding(_TYPE, signing_key), _ALGORITHM)
    except InvalidSignature as error:
        raise refusal from error
    return member
