"""A member's folder as joining leaves it, without a coordinator that answers."""

from datetime import datetime
from pathlib import Path

from tapestry.checkpoints.statements import Contribution
from tapestry.identity.certificates import (
    Authority,
    certificate_request,
    create_tls_key,
    issue_member_certificate,
)
from tapestry.identity.envelopes import to_json
from tapestry.identity.keys import generate_signing_key
from tapestry.identity.membership import Membership
from tapestry_node.home import NodeHome


def joined_member(
    folder: Path,
    authority: Authority,
    *,
    member_id: str,
    issued: datetime,
    address: str = "localhost:1",
    coordinator_key: str = "a" * 64,
    genesis: str = "b" * 64,
    lifetime_days: int = 30,
) -> NodeHome:
    """Return a node's folder with keys and a certificate of `authority`."""
    home = NodeHome(folder)
    home.folder.mkdir()
    key = create_tls_key()
    certificate = issue_member_certificate(
        authority,
        certificate_request(key, member_id=member_id),
        federation="loom",
        member_id=member_id,
        now=issued,
        lifetime_days=lifetime_days,
    )
    home.identity.create(
        Membership(
            federation="loom",
            member_id=member_id,
            address=address,
            coordinator_key=coordinator_key,
            genesis=genesis,
        ),
        root_pem=authority.certificate_pem,
        certificate_pem=certificate,
        tls_key=key,
        signing_key=generate_signing_key(),
    )
    home.make_folders()
    return home


def spool_contribution(home: NodeHome) -> None:
    """Leave a finished contribution to round 2 that nobody has sent or decided on."""
    made = Contribution(
        genesis="b" * 64,
        round=2,
        base="c" * 64,
        member_id="fr-bnf",
        codec="int8",
        fragments=1,
        root="d" * 64,
        tokens=640,
        steps=20,
        norm=1.5,
    )
    folder = home.spool(2)
    folder.mkdir()
    (folder / "fragments.bin").write_bytes(b"x" * 4321)
    envelope = made.signed(home.identity.signing_key())
    (folder / "contribution.json").write_bytes(to_json(envelope))
