"""The hand-made framing against the protobuf library."""

import pytest

from tapestry.v1 import transfer_pb2
from tapestry.wire.bulk import PutFragment, decode_data, decode_put, encode_data, encode_put

DATA = bytes(range(256)) * 3


@pytest.mark.parametrize("number", [1, 127, 128, 300, 2**32, 2**53])
@pytest.mark.parametrize("data", [b"\0", DATA, bytes(2**20)])
def test_a_fragment_is_the_same_message_for_protobuf(number: int, data: bytes) -> None:
    wire = encode_put(PutFragment(number, min(number, 2**31), data))
    theirs = transfer_pb2.PutFragmentRequest(round=number, index=min(number, 2**31), data=data)
    assert wire == theirs.SerializeToString()
    assert decode_put(wire) == PutFragment(number, min(number, 2**31), memoryview(data))


@pytest.mark.parametrize("data", [b"x", DATA, bytes(2**20)])
def test_a_piece_of_a_file_is_the_same_message_for_protobuf(data: bytes) -> None:
    wire = encode_data(data)
    assert wire == transfer_pb2.FetchResponse(data=data).SerializeToString()
    assert decode_data(wire) == data


def test_what_protobuf_leaves_out_is_zero_or_empty() -> None:
    wire = transfer_pb2.PutFragmentRequest().SerializeToString()
    assert decode_put(wire) == PutFragment(0, 0, memoryview(b""))
    assert transfer_pb2.PutFragmentRequest.FromString(encode_put(PutFragment(0, 0, b""))).round == 0


def test_fields_in_another_order_and_unknown_ones_are_read() -> None:
    theirs = transfer_pb2.PutFragmentRequest(round=7, index=3, data=b"abc").SerializeToString()
    unknown = b"\x20\x05" + b"\x2a\x02hi" + b"\x35\0\0\0\0" + b"\x39" + bytes(8)
    assert decode_put(unknown + theirs) == PutFragment(7, 3, memoryview(b"abc"))
    assert decode_put(b"\x1a\x01z\x08\x02") == PutFragment(2, 0, memoryview(b"z"))


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"\x1a\x05ab", id="cut in the data"),
        pytest.param(b"\x08", id="cut in a number"),
        pytest.param(b"\x08" + b"\xff" * 11, id="a number without end"),
        pytest.param(b"\x0b", id="a group"),
        pytest.param(b"\x39\0\0", id="cut in a fixed field"),
    ],
)
def test_what_is_no_message_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"message ends|does not end|is not known"):
        decode_put(wire)


def test_the_view_does_not_copy() -> None:
    wire = encode_put(PutFragment(1, 2, DATA))
    data = decode_put(wire).data
    assert isinstance(data, memoryview)
    assert data.obj is wire
