"""What is published in a coarser form than the coordinator keeps: by hand and by other means.

Shapes: P elements of the vector.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from tapestry.checkpoints.folder import read_lineage
from tapestry.checkpoints.manifest import Manifest, verify_lineage
from tapestry.checkpoints.stepping import STEP_FILE, write_stepped
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import UnavailableError, UntrustedError
from tapestry.params.codecs import Float32Array, codec_named
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import Publisher
from tests.coordinator.small import Small, changed_policy, encode, found_small

SGD = {"optimizer": "sgd", "gamma": 0.0, "clip": 0.0}
NESTEROV = {"optimizer": "nesterov", "learning_rate": 0.5, "momentum": 0.5, "clip": 0.0}
DOWNLINKS = ["float32", "bfloat16", "delta-int8", "delta-int4"]


def set_aggregation(small: Small, **changes: Any) -> None:
    """Go on with another policy, in another process."""
    small.policy = changed_policy(small.policy, aggregation=changes)
    small.publisher = Publisher(home=small.home, key=small.key, store=small.store)


def publish(small: Small, *deltas: list[float]) -> Manifest:
    closed = small.closed({f"m{i}": delta for i, delta in enumerate(deltas)})
    envelope = small.publisher.publish(closed)
    return Manifest.parsed(envelope.payload, what="manifest")


def kept(small: Small, number: int, *, vectors: int) -> Float32Array:
    """The state after a round; [vectors, P] for a model of one fragment."""
    values = np.fromfile(small.home.outer_state(number), "<f4")
    return values.reshape(vectors, -1)


def published(small: Small, number: int) -> Float32Array:
    return np.array(small.vector(number), np.float32)


# bfloat16


def test_bfloat16_is_rounded_from_the_exact_vector_every_time(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", downlink="bfloat16", **SGD)
    step = 2.0**-9  # below 1 the spacing of bfloat16 is 2**-8
    publish(small, [step, 0.0])
    assert small.vector(1) == [1.0, 1.0], "a tie goes to even, here upwards"
    publish(small, [step, 0.0])
    assert small.vector(2) == [1 - 2 * step, 1.0], "what rounding dropped was not forgotten"
    assert kept(small, 2, vectors=1).tolist() == [[1 - 2 * step, 1.0]]


def test_a_bfloat16_checkpoint_is_what_other_readers_take_it_for(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", 300, downlink="bfloat16", **NESTEROV)
    deltas = np.random.default_rng(3).standard_normal((2, 300)).astype(np.float32)
    publish(small, *deltas.tolist())
    momentum, exact = kept(small, 1, vectors=2)
    tensor = load_torch(small.home.checkpoint(1) / MODEL_FILE)["numbers"]
    assert tensor.dtype is torch.bfloat16
    assert torch.equal(tensor, torch.from_numpy(exact.copy()).to(torch.bfloat16))
    np.testing.assert_array_equal(published(small, 1), tensor.float().numpy())
    assert not np.array_equal(exact, published(small, 1))
    assert np.abs(momentum).max() > 0


# Steps


@pytest.mark.parametrize("name", ["delta-int8", "delta-int4"])
def test_a_step_leads_from_the_parent_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    small = found_small(tmp_path / "fed", 700, downlink=name, **NESTEROV)
    rng = np.random.default_rng(5)
    codec = codec_named(name.removeprefix("delta-"))
    held = published(small, 0)
    for number in (1, 2, 3):
        made = publish(small, *rng.standard_normal((2, 700)).astype(np.float32).tolist())
        assert made.step is not None
        step = small.home.checkpoint(number) / STEP_FILE
        # by hand, as any member computes it: parent plus what the codec decodes to
        held = held + codec.decode(step.read_bytes(), 700)
        np.testing.assert_array_equal(published(small, number), held)
        # and by the function that nodes call, byte by byte
        parent = open_vector_file(small.home.checkpoint(number - 1) / MODEL_FILE)
        with (tmp_path / "stepped").open("wb") as out:
            written = write_stepped(parent, step, name, out)
        model = small.home.checkpoint(number) / MODEL_FILE
        assert (tmp_path / "stepped").read_bytes() == model.read_bytes()
        (entry,) = [e for e in made.files if e.name == MODEL_FILE]
        assert written.digest.hex() == entry.digest


@pytest.mark.parametrize("name", DOWNLINKS[1:])
def test_the_published_vector_follows_the_exact_one(tmp_path: Path, name: str) -> None:
    coarse = found_small(tmp_path / "coarse", 512, downlink=name, **NESTEROV)
    exact = found_small(tmp_path / "exact", 512, **NESTEROV)
    rng = np.random.default_rng(7)
    for number in range(1, 7):
        deltas = rng.standard_normal((2, 512)).astype(np.float32) / number
        for small in (coarse, exact):
            publish(small, *deltas.tolist())
        np.testing.assert_array_equal(kept(coarse, number, vectors=2)[1], published(exact, number))
    last = kept(coarse, 6, vectors=2)[1]
    error = np.abs(published(coarse, 6) - last).max()
    spacing = {"bfloat16": 2**-8 * np.abs(last).max(), "delta-int8": 0.05, "delta-int4": 0.5}
    assert 0 < error < spacing[name], "the error of one step, not of six"


@pytest.mark.parametrize("name", DOWNLINKS)
def test_a_round_repeats_to_the_bit(tmp_path: Path, name: str) -> None:
    small = found_small(tmp_path / "fed", 300, downlink=name, **NESTEROV)
    publish(small, [0.25] * 300, [0.5] * 300)
    closed = small.closed({"a": np.linspace(-1, 1, 300).tolist()})
    shutil.copytree(small.home.folder, tmp_path / "copy")
    again = Small(CoordinatorHome(tmp_path / "copy"))
    first, second = (s.publisher.publish(closed).payload for s in (small, again))
    assert first == second
    assert small.home.outer_state(2).read_bytes() == again.home.outer_state(2).read_bytes()


# Changes between rounds


@pytest.mark.parametrize("after", DOWNLINKS)
@pytest.mark.parametrize("before", DOWNLINKS)
def test_the_exact_vector_survives_a_change(tmp_path: Path, before: str, after: str) -> None:
    small = found_small(tmp_path / "fed", 300, downlink=before, **NESTEROV)
    exact = found_small(tmp_path / "exact", 300, **NESTEROV)
    rng = np.random.default_rng(11)
    for number in (1, 2, 3, 4):
        if number == 3:
            set_aggregation(small, downlink=after)
        deltas = rng.standard_normal((1, 300)).astype(np.float32).tolist()
        publish(small, *deltas)
        publish(exact, *deltas)
    held = published(small, 4) if after == "float32" else kept(small, 4, vectors=2)[1]
    np.testing.assert_array_equal(held, published(exact, 4))
    verify_lineage(read_lineage(small.home.checkpoint(4)))


def test_the_exact_vector_survives_another_optimizer(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", downlink="bfloat16", **NESTEROV)
    publish(small, [2.0**-9, 0.0])
    exact = kept(small, 1, vectors=2)[1]
    set_aggregation(small, optimizer="sgd", learning_rate=1.0)
    publish(small, [0.0, 0.0])
    assert kept(small, 2, vectors=1)[0].tolist() == exact.tolist()
    set_aggregation(small, optimizer="adam", learning_rate=0.0)
    publish(small, [0.0, 0.0])
    assert kept(small, 3, vectors=3)[2].tolist() == exact.tolist()


# What a reader of the folder sees


@pytest.mark.parametrize("name", DOWNLINKS)
def test_a_checkpoint_verifies_with_and_without_its_step(tmp_path: Path, name: str) -> None:
    small = found_small(tmp_path / "fed", 300, downlink=name, **SGD)
    publish(small, [0.5] * 300)
    folder = small.home.checkpoint(1)
    assert (folder / STEP_FILE).exists() == name.startswith("delta-")
    verify_checkpoint(folder)
    (folder / STEP_FILE).unlink(missing_ok=True)
    verified = verify_checkpoint(folder)
    assert verified.manifest.made is not None
    assert verified.manifest.made.downlink == name
    if name != "bfloat16":
        assert load_file(folder / MODEL_FILE)["numbers"].dtype == np.float32


@pytest.mark.parametrize("name", ["bfloat16", "delta-int8"])
@pytest.mark.parametrize("target", [MODEL_FILE, STEP_FILE, "state"])
def test_damage_is_found(tmp_path: Path, name: str, target: str) -> None:
    small = found_small(tmp_path / "fed", 300, downlink=name, **SGD)
    publish(small, [0.5] * 300)
    folder = small.home.checkpoint(1)
    path = small.home.outer_state(1) if target == "state" else folder / target
    if not path.exists():
        pytest.skip("this downlink has no step")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    if target == "state":
        with pytest.raises(UnavailableError, match=r"round-000001\.f32: damaged"):
            publish(small, [0.5] * 300)
    else:
        with pytest.raises(UntrustedError, match="changed"):
            verify_checkpoint(folder)


def test_a_step_of_another_vector_is_refused(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", 300, downlink="delta-int8", **SGD)
    parent = open_vector_file(small.home.checkpoint(0) / MODEL_FILE)
    step = tmp_path / "step"
    good = encode(np.full(300, 0.5, np.float32), parent.layout, "int8")[0]
    for data in (b"", good[:-1], b"\xff" * len(good)):
        step.write_bytes(data)
        with (tmp_path / "out").open("wb") as out, pytest.raises(UntrustedError, match="step"):
            write_stepped(parent, step, "delta-int8", out)
    step.write_bytes(good)
    with (tmp_path / "out").open("wb") as out, pytest.raises(UntrustedError, match="topk"):
        write_stepped(parent, step, "topk", out)
