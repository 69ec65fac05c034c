"""Invitations: made here, used up at enrolment."""

import ssl
from contextlib import closing

from tapestry.identity.invitations import Invitation, new_token, token_digest
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import CONTRIBUTOR

_HOUR_SECONDS = 3600


def make_invitation(
    home: CoordinatorHome, member_id: str, *, now: float, role: str = CONTRIBUTOR
) -> Invitation:
    """Return a new invitation for `member_id`, from the registry in `home`.

    Raises:
        ConfigError: The member is enrolled or invited already, or the id is not a slug.
    """
    with closing(Registry(database_url(home))) as registry:
        return new_invitation(home, registry, member_id, now=now, role=role, replaces=False)


def new_invitation(
    home: CoordinatorHome,
    registry: Registry,
    member_id: str,
    *,
    now: float,
    role: str,
    replaces: bool,
) -> Invitation:
    """Return a new invitation; the registry keeps only its token's digest.

    Args:
        home: The coordinator's folder.
        registry: Its registry.
        member_id: Who may use it.
        now: Unix seconds.
        role: What the member may do.
        replaces: As for `Registry.add_invitation`.

    Raises:
        ConfigError: As `Registry.add_invitation`, or the id is not a slug.
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
    registry.add_invitation(
        token_digest(invitation.token),
        member_id=member_id,
        now=now,
        expires_at=invitation.expires_at,
        role=role,
        replaces=replaces,
    )
    return invitation
