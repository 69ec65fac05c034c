"""The two messages that carry gigabytes, without the copies of a general message library.

`PutFragmentRequest` and `FetchResponse` are protobuf messages like all others; here their few bytes
of framing are written and read by hand, and the payload is joined once or not copied at all. Any
protobuf implementation reads what is written here, and the reverse. A fragment goes as a stream of
pieces, so that neither side holds it whole for the sake of the line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc

from tapestry.v1 import transfer_pb2, transfer_pb2_grpc
from tapestry.wire.limits import PIECE_BYTES

_SERVICE = "tapestry.v1.TransferService"
PUT_FRAGMENT = f"/{_SERVICE}/PutFragment"
FETCH = f"/{_SERVICE}/Fetch"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class PutFragment:
    """A fragment, or a piece of one: a `PutFragmentRequest`, `data` a view of what was received."""

    round: int
    index: int
    data: bytes | memoryview
    digest: bytes | None = None
    """SHA-256 of `data` where the sender has it; does not travel."""


def encode_put(message: PutFragment) -> bytes:
    """Return a `PutFragmentRequest` on the wire."""
    head = b"\x08" + _varint(message.round) + b"\x10" + _varint(message.index)
    return b"".join((head, b"\x1a", _varint(len(message.data)), message.data))


def decode_put(wire: bytes) -> PutFragment:
    """Read a `PutFragmentRequest`.

    Raises:
        ValueError: It is not one; gRPC then answers with an internal error.
    """
    numbers, data = {1: 0, 2: 0}, memoryview(b"")
    for field, value in _fields(wire):
        if field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 3 and isinstance(value, memoryview):
            data = value
    return PutFragment(numbers[1], numbers[2], data)


class Pieces:
    """The messages of one fragment, in order; at least one."""

    def __init__(self, fragment: PutFragment, *, piece_bytes: int = PIECE_BYTES) -> None:
        """Cut `fragment` into pieces as they are asked for."""
        self.fragment = fragment
        self._piece_bytes = piece_bytes
        self._data = memoryview(fragment.data)
        self._at: int | None = 0

    def __iter__(self) -> Self:
        """Return it."""
        return self

    def __next__(self) -> PutFragment:
        """Return the next piece; it is not a copy."""
        if self._at is None:
            raise StopIteration
        start, stop = self._at, self._at + self._piece_bytes
        self._at = stop if stop < len(self._data) else None
        return PutFragment(self.fragment.round, self.fragment.index, self._data[start:stop])


def encode_data(data: bytes | memoryview) -> bytes:
    """Return a `FetchResponse` on the wire."""
    return b"".join((b"\x0a", _varint(len(data)), data))


def decode_data(wire: bytes) -> memoryview:
    """Return the data of a `FetchResponse`.

    Raises:
        ValueError: It is not one.
    """
    data = memoryview(b"")
    for field, value in _fields(wire):
        if field == 1 and isinstance(value, memoryview):
            data = value
    return data


class BulkStub:
    """The two calls, from a node's side."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Call over `channel`."""
        self.put_pieces: grpc.StreamUnaryMultiCallable[
            PutFragment, transfer_pb2.PutFragmentResponse
        ] = channel.stream_unary(
            PUT_FRAGMENT,
            request_serializer=encode_put,
            response_deserializer=transfer_pb2.PutFragmentResponse.FromString,
        )
        """To be called with `Pieces`."""
        self.put_fragment: grpc.UnaryUnaryMultiCallable[
            PutFragment, transfer_pb2.PutFragmentResponse
        ] = channel.unary_unary(
            PUT_FRAGMENT,
            request_serializer=encode_put,
            response_deserializer=transfer_pb2.PutFragmentResponse.FromString,
        )
        """The same call with one piece, which looks no different on the wire, and costs less."""
        self.fetch: grpc.UnaryStreamMultiCallable[transfer_pb2.FetchRequest, memoryview] = (
            channel.unary_stream(
                FETCH,
                request_serializer=transfer_pb2.FetchRequest.SerializeToString,
                response_deserializer=decode_data,
            )
        )


class BulkServicer(Protocol):
    """The two calls, from the coordinator's side."""

    def put_fragment(
        self, requests: Iterator[PutFragment], context: grpc.ServicerContext
    ) -> transfer_pb2.PutFragmentResponse:
        """Store one fragment, which comes in pieces."""
        ...

    def fetch(
        self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Yield a file's bytes from an offset on."""
        ...


def add_transfer_service(
    servicer: transfer_pb2_grpc.TransferServiceServicer, bulk: BulkServicer, server: grpc.Server
) -> None:
    """Serve the service, with `bulk` for its two large calls."""
    transfer_pb2_grpc.add_TransferServiceServicer_to_server(servicer, server)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "PutFragment": grpc.stream_unary_rpc_method_handler(
            bulk.put_fragment,
            request_deserializer=decode_put,
            response_serializer=transfer_pb2.PutFragmentResponse.SerializeToString,
        ),
        "Fetch": grpc.unary_stream_rpc_method_handler(
            bulk.fetch,
            request_deserializer=transfer_pb2.FetchRequest.FromString,
            response_serializer=encode_data,
        ),
    }
    server.add_registered_method_handlers(_SERVICE, handlers)  # later ones win


def _varint(number: int) -> bytes:
    if not 0 <= number < 2**64:
        raise ValueError(f"{number} does not fit an unsigned integer of 64 bits")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _fields(wire: bytes) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field; bytes come as a view, other types are skipped."""
    view, at = memoryview(wire), 0
    while at < len(wire):
        tag, at = _read_varint(wire, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(wire, at)
            yield tag >> 3, number
        elif kind == _BYTES:
            size, at = _read_varint(wire, at)
            yield tag >> 3, view[at : at + size]
            at += size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} of field {tag >> 3} is not known")
    if at != len(wire):
        raise ValueError("the message ends in the middle of a field")


def _read_varint(wire: bytes, at: int) -> tuple[int, int]:
    number = 0
    for place in range(_MAX_VARINT_BYTES):
        if at + place >= len(wire):
            break
        byte = wire[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("a number does not end")
