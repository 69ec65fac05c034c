"""How members reach a simulated coordinator: calls under a certificate, and streams."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc

from tapestry_coordinator.announcing import Announcement


class Refusal(grpc.RpcError):
    """What a caller sees of a call that was not answered with a message."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        super().__init__(details)
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._metadata


class Context:
    """A call by whoever holds a certificate."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate
        self._metadata: Any = ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate]}

    def peer(self) -> str:
        return "simulated"

    def is_active(self) -> bool:
        return True

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._metadata = metadata

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Refusal(code, details, self._metadata)


@dataclass(eq=False)
class Stream:
    """A member's open `WatchPlans`."""

    number: int
    member_id: str
    certificate: bytes
    hear: Callable[[int, Announcement], None]
    broken: Callable[[], None]
    present: ExitStack = field(default_factory=ExitStack)
    is_newest: Callable[[], bool] = bool
    version: int = -1
    arrives_at: float = 0.0
    """Of the message that was sent last: a stream keeps its order."""
