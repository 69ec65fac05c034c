"""`model.safetensors`, read back by us and by the safetensors library."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tapestry.checkpoints.beside import BesideTensor, ExtraTensor, beside_digest
from tapestry.checkpoints.vector_file import VectorWriter, WrittenVector, open_vector_file
from tapestry.errors import UntrustedError
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout

LAYOUT = ParameterLayout.from_shapes([("b.weight", (2, 3)), ("a.bias", (4,)), ("c.scale", ())])
VALUES = np.arange(11, dtype=np.float32)
EXTRAS = {
    "z.steps": ExtraTensor("I64", (), (7).to_bytes(8, "little")),
    "frozen": ExtraTensor("F32", (2,), np.float32([0.5, -0.5]).tobytes()),
}
Header = dict[str, Any]


def write(
    path: Path,
    values: Float32Array = VALUES,
    layout: ParameterLayout = LAYOUT,
    extras: dict[str, ExtraTensor] | None = None,
) -> WrittenVector:
    with path.open("wb") as file:
        writer = VectorWriter(file, layout, extras or {})
        for index in range(layout.fragments):
            writer.write(values[slice(*layout.bounds(index))])
        return writer.finish()


def read(extras: Mapping[str, BesideTensor]) -> dict[str, ExtraTensor]:
    return {name: ExtraTensor(one.dtype, one.shape, one.data) for name, one in extras.items()}


def split(path: Path) -> tuple[Header, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.safetensors"
    write(target, extras=EXTRAS)
    return target


def test_the_safetensors_library_reads_names_shapes_and_values(path: Path) -> None:
    tensors = load_file(path)
    assert sorted(tensors) == ["a.bias", "b.weight", "c.scale", "frozen", "z.steps"]
    assert torch.equal(tensors["a.bias"], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert torch.equal(tensors["b.weight"], torch.tensor([[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]))
    assert torch.equal(tensors["c.scale"], torch.tensor(10.0))
    assert torch.equal(tensors["frozen"], torch.tensor([0.5, -0.5]))
    assert torch.equal(tensors["z.steps"], torch.tensor(7))


def test_the_safetensors_library_reads_extras_of_odd_sizes(tmp_path: Path) -> None:
    extras = {
        "a.mask": ExtraTensor("BOOL", (3,), b"\1\0\1"),
        "b.half": ExtraTensor("BF16", (1,), b"\x80\x3f"),
        "c.count": ExtraTensor("I64", (), (5).to_bytes(8, "little")),
    }
    write(tmp_path / "odd", extras=extras)
    tensors = load_file(tmp_path / "odd")
    assert tensors["a.mask"].tolist() == [True, False, True]
    assert tensors["b.half"].tolist() == [1.0]
    assert tensors["c.count"].item() == 5


def test_what_was_written_is_read_back(path: Path) -> None:
    opened = open_vector_file(path)
    assert opened.layout == LAYOUT
    np.testing.assert_array_equal(opened.vector, VALUES)
    assert read(opened.extras) == EXTRAS


def test_what_stands_beside_the_vector_has_a_digest_that_a_reader_can_redo(path: Path) -> None:
    text = b'[["frozen","F32",[2]],["z.steps","I64",[]]]\n'
    data = np.float32([0.5, -0.5]).tobytes() + (7).to_bytes(8, "little")
    expected = hashlib.sha256(text + data).hexdigest()
    assert beside_digest(open_vector_file(path).extras) == expected
    assert write(path, extras=EXTRAS).beside.hex() == expected
    assert open_vector_file(path).model_elements == 11 + 3


def test_what_stands_beside_the_vector_is_copied_from_file_to_file(path: Path) -> None:
    opened = open_vector_file(path)
    with (path.parent / "copy").open("wb") as file:
        writer = VectorWriter(file, LAYOUT, opened.extras)
        writer.write(VALUES)
        writer.finish()
    assert (path.parent / "copy").read_bytes() == path.read_bytes()


def test_a_file_that_was_cut_while_it_was_open_is_named(path: Path) -> None:
    opened = open_vector_file(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    with pytest.raises(UntrustedError, match=r"model\.safetensors: has become shorter"):
        beside_digest(opened.extras)


def test_the_mapped_vector_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_vector_file(path).vector[0] = 1.0


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    written = write(tmp_path / "file", extras=EXTRAS)
    data = (tmp_path / "file").read_bytes()
    assert written.size_bytes == len(data)
    assert written.digest == hashlib.sha256(data).digest()


def test_the_root_is_over_the_vector_and_not_the_extras(tmp_path: Path) -> None:
    # one fragment: RFC 6962 hashes the only leaf, which is the fragment's SHA-256
    leaf = hashlib.sha256(VALUES.tobytes()).digest()
    expected = hashlib.sha256(b"\0" + leaf).digest()
    assert write(tmp_path / "plain").root == expected
    assert write(tmp_path / "extras", extras=EXTRAS).root == expected
    assert open_vector_file(tmp_path / "extras").root() == expected


def test_a_vector_of_several_fragments_is_whole(tmp_path: Path) -> None:
    layout = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + 5,)), ("v", (3,))])
    values = np.random.default_rng(0).standard_normal(layout.elements, np.float32)
    written = write(tmp_path / "file", values, layout)
    assert written.digest == hashlib.sha256((tmp_path / "file").read_bytes()).digest()
    opened = open_vector_file(tmp_path / "file", layout)
    np.testing.assert_array_equal(opened.vector, values)
    assert opened.root() == written.root
    assert torch.equal(load_file(tmp_path / "file")["w"], torch.from_numpy(values[3:]))


def test_a_bfloat16_vector_is_read_as_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal(11).astype(np.float32)
    with (tmp_path / "half").open("wb") as file:
        writer = VectorWriter(file, LAYOUT, EXTRAS, dtype="BF16")
        writer.write(values)
        written = writer.finish()
    expected = torch.from_numpy(values).to(torch.bfloat16)
    tensors = load_file(tmp_path / "half")
    assert torch.equal(tensors["a.bias"], expected[:4])
    assert torch.equal(tensors["c.scale"], expected[10])
    assert torch.equal(tensors["frozen"], torch.tensor([0.5, -0.5]))
    opened = open_vector_file(tmp_path / "half", LAYOUT)
    assert (opened.dtype, opened.vector.shape) == ("BF16", (11,))
    assert read(opened.extras) == EXTRAS
    np.testing.assert_array_equal(opened.vector[3:7], expected[3:7].float().numpy())
    np.testing.assert_array_equal(opened.read_fragment(0), expected.float().numpy())
    assert opened.root() == written.root
    assert written.digest == hashlib.sha256((tmp_path / "half").read_bytes()).digest()


def test_a_vector_of_two_kinds_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "half").open("wb") as file:
        writer = VectorWriter(file, LAYOUT, {}, dtype="BF16")
        writer.write(VALUES)
        writer.finish()
    header, data = split(tmp_path / "half")
    header["c.scale"]["dtype"] = "F16"
    (tmp_path / "half").write_bytes(join(header, data))
    with pytest.raises(UntrustedError, match="neither float32 nor bfloat16"):
        open_vector_file(tmp_path / "half")


def test_a_bfloat16_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "half").open("wb") as file:
        writer = VectorWriter(file, LAYOUT, {}, dtype="BF16")
        writer.write(VALUES)
        writer.finish()
    header, data = split(tmp_path / "half")
    (tmp_path / "half").write_bytes(join(header, b"\x80\x7f" + data[2:]))
    with pytest.raises(UntrustedError, match="fragment 0: the bfloat16 fragment has NaN"):
        open_vector_file(tmp_path / "half").read_fragment(0)


def test_one_changed_element_changes_the_root(tmp_path: Path) -> None:
    other = VALUES.copy()
    other[10] = np.nextafter(other[10], np.float32(0))
    assert write(tmp_path / "a").root != write(tmp_path / "b", other).root


def test_writing_too_few_or_wrong_fragments_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        writer = VectorWriter(file, LAYOUT, {})
        with pytest.raises(ValueError, match="shape"):
            writer.write(VALUES[:5])
        with pytest.raises(ValueError, match="0 of 1 fragments"):
            writer.finish()


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -1, -20])
def test_a_truncated_file_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UntrustedError, match="not a parameter vector"):
        open_vector_file(path)


def test_a_padded_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UntrustedError, match="not a parameter vector"):
        open_vector_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="cannot be read: No such file"):
        open_vector_file(tmp_path / "nothing")


def test_a_vector_of_another_model_is_refused(path: Path) -> None:
    other = ParameterLayout.from_shapes([("w", (11,))])
    with pytest.raises(UntrustedError, match="not those of this federation's model"):
        open_vector_file(path, other)


def _set(name: str, key: str, value: object) -> Callable[[Header], object]:
    def change(header: Header) -> Header:
        header[name][key] = value
        return header

    return change


def _count(value: object) -> Callable[[Header], object]:
    return _set("__metadata__", "tapestry.vector_tensors", value)


def _reversed(header: Header) -> Header:
    return dict(reversed(header.items()))


def _without(name: str) -> Callable[[Header], object]:
    return lambda header: {key: value for key, value in header.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_set("a.bias", "dtype", "I32"), id="not float32"),
        pytest.param(_set("a.bias", "shape", [2, 3]), id="another size"),
        pytest.param(_set("a.bias", "shape", [-4]), id="negative"),
        pytest.param(_set("a.bias", "shape", []), id="scalar"),
        pytest.param(_set("a.bias", "shape", "4"), id="shape of text"),
        pytest.param(_set("a.bias", "shape", [2**62, 2**62]), id="huge"),
        pytest.param(_set("b.weight", "data_offsets", [20, 44]), id="gap"),
        pytest.param(_set("b.weight", "data_offsets", [12, 36]), id="overlap"),
        pytest.param(_set("b.weight", "data_offsets", None), id="no offsets"),
        pytest.param(_set("frozen", "data_offsets", [44, 10**9]), id="beyond the file"),
        pytest.param(_set("frozen", "data_offsets", [0, 8]), id="extra over the vector"),
        pytest.param(_set("frozen", "data_offsets", ["44", "52"]), id="offsets of text"),
        pytest.param(_set("frozen", "shape", [3]), id="extra of another shape"),
        pytest.param(_set("frozen", "dtype", "F64"), id="extra of another type"),
        pytest.param(_set("frozen", "dtype", "OBJECT"), id="extra of no type"),
        pytest.param(_count("5"), id="count too large"),
        pytest.param(_count("0"), id="no vector"),
        pytest.param(_count("-1"), id="negative count"),
        pytest.param(_count("three"), id="count of text"),
        pytest.param(_count(float("inf")), id="infinite count"),
        pytest.param(_without("__metadata__"), id="no metadata"),
        pytest.param(_without("a.bias"), id="tensor missing"),
        pytest.param(_reversed, id="not sorted"),
        pytest.param(lambda header: [header], id="a list"),
        pytest.param(lambda header: header | {"__metadata__": "none"}, id="metadata of text"),
        pytest.param(lambda header: header | {"a.bias": 3}, id="tensor of a number"),
        pytest.param(lambda _: {}, id="empty"),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, change: Callable[[Header], object]) -> None:
    header, data = split(path)
    path.write_bytes(join(change(header), data))
    with pytest.raises(UntrustedError, match="not a parameter vector"):
        open_vector_file(path)


def test_a_tensor_taken_out_of_the_vector_makes_another_model(path: Path) -> None:
    header, data = split(path)
    path.write_bytes(join(_count("2")(header), data))
    with pytest.raises(UntrustedError, match="not those of this federation's model"):
        open_vector_file(path, LAYOUT)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((2**63).to_bytes(8, "little") + b"{}", id="length beyond the file"),
        pytest.param((10).to_bytes(8, "little") + b"not json!!", id="not JSON"),
        pytest.param((3).to_bytes(8, "little") + b"\xff\xfe\xfd", id="not UTF-8"),
        pytest.param((100_000).to_bytes(8, "little") + b"[" * 100_000, id="nested without end"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="a zip file"),
    ],
)
def test_something_else_under_that_name_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UntrustedError, match="not a parameter vector"):
        open_vector_file(tmp_path / "file")
