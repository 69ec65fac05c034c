"""The residual on the disk: what holds after a receipt, a refusal, a crash."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.errors import ConfigError
from tapestry.identity.keys import public_bytes
from tapestry.params.codecs import Codec, Float32Array, codec_named
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout
from tapestry_node.guard import sealed
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeTable, Policy
from tapestry_node.residual import (
    SPOOLED_RESIDUAL,
    accept_residual,
    fragment_encoder,
    open_residual,
    refuse_residual,
)
from tapestry_node.spool import find_spooled, find_unsettled, keep_refused
from tapestry_node.trainer import Trainer
from tests.conftest import Federation

TOPK = codec_named("topk")
LAYOUT = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + 1003,))])
DECAY = np.float32(0.95)


@dataclass
class Spool:
    """A node's residual and one contribution, spooled."""

    folder: Path
    codec: Codec = TOPK
    number: int = 0

    @property
    def residual(self) -> Path:
        return self.folder / "residual.f32"

    @property
    def spool(self) -> Path:
        return self.folder / f"round-{self.number}"

    def encode(self, delta: Float32Array) -> Float32Array:
        """Spool the next contribution; return what it decodes to."""
        self.number += 1
        self.spool.mkdir()
        decoded = []
        with fragment_encoder(
            self.codec, residual=self.residual, spool=self.spool, layout=LAYOUT
        ) as encode:
            for index in range(LAYOUT.fragments):
                part = delta[slice(*LAYOUT.bounds(index))]
                data = encode(index, part)
                (self.spool / str(index)).write_bytes(data)
                decoded.append(self.codec.decode(data, len(part)))
        return np.concatenate(decoded)

    def accept(self) -> None:
        accept_residual(self.spool, self.residual)

    def refuse(self) -> None:
        refuse_residual(
            self.spool,
            self.residual,
            codec=self.codec,
            layout=LAYOUT,
            read_fragment=lambda index: (self.spool / str(index)).read_bytes(),
        )

    def read(self) -> Float32Array:
        residual = open_residual(self.residual, LAYOUT)
        assert residual is not None
        return np.array(residual)


def noise(*, seed: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(LAYOUT.elements, np.float32)


def test_the_residual_holds_once_the_receipt_is_there(tmp_path: Path) -> None:
    node, delta = Spool(tmp_path), noise(seed=1)
    decoded = node.encode(delta)
    assert open_residual(node.residual, LAYOUT) is None
    node.accept()
    np.testing.assert_array_equal(node.read(), delta - decoded)
    assert not (node.spool / SPOOLED_RESIDUAL).exists()


def test_the_next_contribution_carries_what_was_left(tmp_path: Path) -> None:
    node, first, second = Spool(tmp_path), noise(seed=1), noise(seed=2)
    left = first - node.encode(first)
    node.accept()
    decoded = node.encode(second)
    total = DECAY * left + second
    np.testing.assert_array_equal(decoded[:FRAGMENT_ELEMENTS], round_trip(total, 0))
    node.accept()
    np.testing.assert_array_equal(node.read(), total - decoded)


def round_trip(total: Float32Array, index: int) -> Float32Array:
    part = total[slice(*LAYOUT.bounds(index))]
    return TOPK.decode(TOPK.encode(part), len(part))


def test_a_refused_contribution_is_not_lost(tmp_path: Path) -> None:
    node, first, second = Spool(tmp_path), noise(seed=1), noise(seed=2)
    left = first - node.encode(first)
    node.accept()
    node.encode(second)
    node.refuse()
    np.testing.assert_allclose(node.read(), DECAY * left + second, rtol=0, atol=1e-6)
    assert not (node.spool / SPOOLED_RESIDUAL).exists()


def test_accepting_and_refusing_can_be_repeated(tmp_path: Path) -> None:
    node = Spool(tmp_path)
    node.encode(noise(seed=1))
    node.accept()
    once = node.read()
    node.accept()
    node.refuse()  # nothing waits any more
    np.testing.assert_array_equal(node.read(), once)


def test_a_crash_before_the_spooled_residual_is_gone_changes_nothing(tmp_path: Path) -> None:
    node = Spool(tmp_path)
    node.encode(noise(seed=1))
    waiting = (node.spool / SPOOLED_RESIDUAL).read_bytes()
    node.refuse()
    once = node.read()
    (node.spool / SPOOLED_RESIDUAL).write_bytes(waiting)
    node.refuse()
    np.testing.assert_array_equal(node.read(), once)


def test_a_codec_without_feedback_leaves_no_residual(tmp_path: Path) -> None:
    node, delta = Spool(tmp_path, codec=codec_named("int4")), noise(seed=1)
    decoded = node.encode(delta)
    part = delta[:FRAGMENT_ELEMENTS]
    again = node.codec.decode(node.codec.encode(part), len(part))
    np.testing.assert_array_equal(decoded[:FRAGMENT_ELEMENTS], again)
    assert not (node.spool / SPOOLED_RESIDUAL).exists()
    node.accept()
    assert open_residual(node.residual, LAYOUT) is None


def test_a_residual_of_another_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "residual.f32"
    path.write_bytes(bytes(12))
    with pytest.raises(ConfigError, match=r"residual\.f32: has 12 bytes"):
        open_residual(path, LAYOUT)


def test_a_trainer_spools_in_topk_and_takes_a_refusal_up(
    federation: Federation, tmp_path: Path
) -> None:
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n}. le livre de sable et d'encre" for n in range(400)))
    small = {"steps": 1, "sequences": 1, "sequence_tokens": 32}
    inner = federation.closed.plan.inner.model_copy(update=small)
    plan = federation.closed.plan.model_copy(update={"codec": "topk", "inner": inner})
    trainer = Trainer(
        home, NodeTable(), "causal-lm", federation.genesis, [text], sequence_tokens=32
    )
    optimizer, base, losses = trainer.train_round(
        plan, federation.genesis, previous_state=None, on_step=lambda _report: True
    )
    key = Ed25519PrivateKey.generate()
    own = public_bytes(key)
    spooled = sealed(
        home,
        plan,
        lambda file, look: trainer.write(plan, base, optimizer, losses, file, on_fragment=look),
        layout=trainer.layout,
        policy=Policy(),
        member_id="fr-bnf",
        key=key,
        seconds=1.0,
    )
    assert spooled.size_bytes == sum(
        TOPK.encoded_bytes(stop - start)
        for start, stop in map(trainer.layout.bounds, range(trainer.layout.fragments))
    )
    assert find_spooled(home, plan, trainer.layout, key=own) == spooled
    assert find_unsettled(home, trainer.layout, key=own) == [spooled]

    keep_refused(spooled, home, trainer.layout)
    residual = open_residual(home.residual, trainer.layout)
    assert residual is not None
    local = np.concatenate([p.detach().numpy().ravel() for p in _parameters(trainer)])
    np.testing.assert_allclose(residual, base.vector - local, rtol=0, atol=1e-6)
    assert find_unsettled(home, trainer.layout, key=own) == []
    assert home.spooled() == []


def _parameters(trainer: Trainer) -> list[Any]:
    named = dict(trainer.module.named_parameters())
    return [named[spec.name] for spec in trainer.layout.tensors]
