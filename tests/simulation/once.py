"""What need not be asked twice within a history, because the answer cannot have changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Attestation
from tapestry.identity.certificates import MemberCertificate, read_member_certificate
from tapestry_coordinator import callers, desk

_read_certificate = lru_cache(256)(read_member_certificate)
_parse = Attestation.parsed.__func__  # type: ignore[attr-defined]  # of whatever class is asked
_canonical = FederationPolicy.canonical


@lru_cache(4096)
def _parsed(cls: type[Attestation], payload: bytes, what: str) -> Any:
    return _parse(cls, payload, what=what)


@lru_cache(256)
def _written(text: str) -> bytes:
    return _canonical(FederationPolicy.model_validate_json(text))


@contextmanager
def cheaply() -> Iterator[None]:
    """Read and write the same bytes once, and pauses from memory, while the block runs."""

    def read(pem: bytes, *, federation: str) -> MemberCertificate:
        return _read_certificate(pem, federation=federation)

    def parsed(cls: type[Attestation], payload: bytes, *, what: str) -> Any:
        return _parsed(cls, payload, what)

    def canonical(policy: FederationPolicy) -> bytes:
        return _written(policy.model_dump_json())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callers, "read_member_certificate", read)
        patch.setattr(desk, "pause_in_force", lambda registry: registry.pause())
        patch.setattr(Attestation, "parsed", classmethod(parsed))
        patch.setattr(FederationPolicy, "canonical", canonical)
        yield
