"""A renewed certificate and its key take the places of two files, one after the other."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tapestry.errors import ConfigError
from tapestry.identity.certificates import (
    Authority,
    certificate_request,
    create_authority,
    create_tls_key,
    issue_member_certificate,
)
from tapestry.identity.keys import private_pem
from tapestry.identity.membership import IdentityFolder
from tests.members import joined_member

NOW = datetime.now(UTC)


class PowerCutError(Exception):
    """The process is gone."""


@pytest.fixture
def authority() -> Authority:
    return create_authority("loom", now=NOW)


@pytest.fixture
def identity(tmp_path: Path, authority: Authority) -> IdentityFolder:
    return joined_member(tmp_path / "node", authority, member_id="a", issued=NOW).identity


def renew(identity: IdentityFolder, authority: Authority) -> tuple[bytes, bytes]:
    """Renew; return what the folder is to have then."""
    key = create_tls_key()
    certificate = issue_member_certificate(
        authority,
        certificate_request(key, member_id="a"),
        federation="loom",
        member_id="a",
        now=NOW,
    )
    identity.replace_certificate(certificate, key)
    return certificate, private_pem(key)


def cut_short(
    identity: IdentityFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renew, and be gone before a new key has its place."""
    replace = os.replace

    def gone(source: Path, target: Path) -> None:
        if target.name == "tls.key":
            raise PowerCutError
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(os, "replace", gone)
        renew(identity, authority)


def test_a_renewal_that_was_cut_short_leaves_a_pair(
    identity: IdentityFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity.tls_pair()
    cut_short(identity, authority, monkeypatch)
    assert identity.tls_pair()[0] == identity.certificate_pem() != before[0]
    cut_short(identity, authority, monkeypatch)
    identity.tls_pair()
    assert renew(identity, authority) == identity.tls_pair()
    assert [path.name for path in identity.folder.iterdir() if path.name.startswith(".")] == []


def test_who_reads_while_both_are_replaced_has_a_pair(
    identity: IdentityFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, renewed = IdentityFolder.certificate_pem, list[tuple[bytes, bytes]]()

    def replaced_after(folder: IdentityFolder) -> bytes:
        certificate = read(folder)
        if not renewed:
            renewed.append((b"", b""))  # once
            renewed[0] = renew(identity, authority)
        return certificate

    monkeypatch.setattr(IdentityFolder, "certificate_pem", replaced_after)
    assert identity.tls_pair() == renewed[0]


def test_files_that_do_not_belong_together_are_named(identity: IdentityFolder) -> None:
    path = identity.folder / "tls.key"
    path.write_bytes(private_pem(create_tls_key()))
    with pytest.raises(ConfigError, match=r"tls\.crt and tls\.key do not belong together"):
        identity.tls_pair()
