"""Invitations: made here, used up at enrolment."""

import ssl

from tapestry.identity.invitations import Invitation, new_token, token_digest
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry

_HOUR_SECONDS = 3600


def make_invitation(home: CoordinatorHome, member_id: str, *, now: float) -> Invitation:
    """Return a new invitation for `member_id`; the registry keeps only its token's digest.

    Raises:
        ConfigError: The member is enrolled already, or the id is not a slug.
    """
    settings = home.load_settings()
    root = home.load_authority().certificate_pem.decode()
    invitation = Invitation(
        federation=home.load_genesis().origin.federation,
        member_id=member_id,
        address=settings.network.enrolment_address,
        root_certificate=ssl.PEM_cert_to_DER_cert(root),
        token=new_token(),
        expires_at=int(now + settings.membership.invitation_hours * _HOUR_SECONDS),
    )
    registry = Registry(database_url(home))
    try:
        registry.add_invitation(
            token_digest(invitation.token),
            member_id=member_id,
            now=now,
            expires_at=invitation.expires_at,
        )
    finally:
        registry.close()
    return invitation
