"""A finished contribution on the disk: nothing else leaves in its place, and it becomes durable."""

import hashlib
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Contribution, InnerSettings, RoundPlan
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import to_json
from tapestry.identity.keys import public_bytes
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragments_root
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout
from tapestry.storage.atomic import sync_tree
from tapestry.storage.spares import Spares
from tapestry_node import spool as spool_module
from tapestry_node.home import NodeHome
from tapestry_node.spool import Spooled, find_spooled, keep_refused, spooling

SECONDS = 60.0
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
OWN = public_bytes(KEY)
LAYOUT = ParameterLayout.from_shapes([("vector", (FRAGMENT_ELEMENTS + 300,))])
VALUES = np.random.default_rng(2).standard_normal(LAYOUT.elements).astype(np.float32)
ENCODED = [
    codec_named("int8").encode(VALUES[slice(*LAYOUT.bounds(i))]) for i in range(LAYOUT.fragments)
]


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    return Spares(tmp_path, "spool")


@pytest.fixture
def spooled(tmp_path: Path, spares: Spares) -> Spooled:
    return spool(tmp_path / "round-000001", spares)


def spool(folder: Path, spares: Spares) -> Spooled:
    with spooling(folder, spares) as fragments:
        for data in ENCODED:
            fragments.write(data)
    contribution = Contribution(
        genesis="a" * 64,
        round=1,
        base="b" * 64,
        member_id="fr-bnf",
        codec="int8",
        fragments=len(ENCODED),
        root=fragments_root(fragments.digests).hex(),
        tokens=8,
        steps=1,
        norm=1.0,
    )
    signed = contribution.signed(KEY)
    return Spooled.completed(folder, contribution, signed, fragments=fragments, layout=LAYOUT)


def plan_for(spooled: Spooled) -> RoundPlan:
    """The plan that the contribution answers."""
    made = spooled.contribution
    return RoundPlan(
        genesis=made.genesis,
        round=made.round,
        attempt=1,
        base=made.base,
        layout=LAYOUT.digest,
        policy="d" * 64,
        cohort=(made.member_id,),
        quorum=1,
        grace_seconds=1.0,
        deadline=1.0,
        objective="causal-lm",
        inner=InnerSettings(
            steps=made.steps,
            sequences=1,
            sequence_tokens=made.tokens,
            learning_rate=1e-3,
            warmup_steps=1,
        ),
        codec=made.codec,
        max_element=10.0,
        seed=1,
    )


def damage(spooled: Spooled) -> None:
    path = spooled.folder / "fragments.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_fragments_come_back_as_they_were(spooled: Spooled) -> None:
    assert [spooled.read_fragment(i) for i in range(LAYOUT.fragments)] == ENCODED
    assert spooled.digests == tuple(hashlib.sha256(data).digest() for data in ENCODED)
    assert spooled.size_bytes == sum(map(len, ENCODED))


@pytest.mark.parametrize("is_same_process", [True, False])
def test_a_fragment_that_changed_on_the_disk_does_not_leave(
    spooled: Spooled, *, is_same_process: bool
) -> None:
    reader = spooled if is_same_process else replace(spooled, checksums=())
    damage(spooled)
    assert reader.read_fragment(0) == ENCODED[0]
    with pytest.raises(RejectedError, match="fragment 1 is damaged on this disk"):
        reader.read_fragment(1)


def test_a_spool_is_taken_up_only_whole_until_it_is_durable(spooled: Spooled) -> None:
    assert spooled.is_whole()
    damage(spooled)
    assert not spooled.is_whole()


@pytest.mark.parametrize("name", ["contribution.json", "digests.json", "fragments.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100], ids=["empty", "zeros"])
def test_what_a_power_cut_took_is_trained_again(
    spooled: Spooled, tmp_path: Path, name: str, content: bytes
) -> None:
    home = NodeHome(tmp_path)
    shutil.copytree(spooled.folder, home.spool(1))
    plan = plan_for(spooled)
    assert find_spooled(home, plan, LAYOUT, key=OWN) == replace(spooled, folder=home.spool(1))
    (home.spool(1) / name).write_bytes(content)
    assert find_spooled(home, plan, LAYOUT, key=OWN) is None


def test_what_is_delivered_at_once_never_waits_for_the_disk(spooled: Spooled) -> None:
    with spooled.becoming_durable():
        pass
    assert not (spooled.folder / "durable").exists()


def join_timers() -> None:
    for timer in (one for one in threading.enumerate() if isinstance(one, threading.Timer)):
        timer.join(SECONDS)


def test_what_is_durable_after_it_was_delivered_marks_no_other_spool_in_its_place(
    spooled: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow_disk(_folder: Path) -> None:
        begun.set()
        go.wait(SECONDS)

    monkeypatch.setattr(spool_module, "_DURABLE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(spool_module, "sync_tree", slow_disk)
    with spooled.becoming_durable():
        assert begun.wait(SECONDS)
    go.set()
    join_timers()
    assert not (spooled.folder / "durable").exists()


def test_what_is_not_delivered_soon_becomes_durable(
    spooled: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_DURABLE_AFTER_SECONDS", 0.01)
    deadline = time.monotonic() + 60
    with spooled.becoming_durable():
        while not (spooled.folder / "durable").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert spooled.is_whole()


def test_a_spool_that_is_removed_meanwhile_is_no_failure(
    spooled: Spooled,
    spares: Spares,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    removed = threading.Event()

    def remove_first(folder: Path) -> None:
        spooled.remove(spares)
        removed.set()
        sync_tree(folder)

    monkeypatch.setattr(spool_module, "_DURABLE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(spool_module, "sync_tree", remove_first)
    with spooled.becoming_durable():
        assert removed.wait(SECONDS)
        join_timers()
    assert not spooled.folder.exists()
    assert caplog.text == ""


def test_what_a_person_refused_and_then_the_round_too_is_removed_once(
    spooled: Spooled, tmp_path: Path
) -> None:
    home = NodeHome(tmp_path / "other")
    home.make_folders()
    for _refusal in range(2):
        keep_refused(spooled, home, LAYOUT)
    assert not spooled.folder.exists()


def test_the_next_spool_takes_the_space_of_the_last(spooled: Spooled, spares: Spares) -> None:
    inode = (spooled.folder / "fragments.bin").stat().st_ino
    spooled.remove(spares)
    following = spool(spooled.folder.with_name("round-000002"), spares)
    assert (following.folder / "fragments.bin").stat().st_ino == inode
    assert [following.read_fragment(i) for i in range(LAYOUT.fragments)] == ENCODED
    assert json.loads((following.folder / "digests.json").read_text()) == [
        digest.hex() for digest in following.digests
    ]


@pytest.mark.parametrize("planted", ["signature", "digests"])
def test_what_the_guard_has_not_signed_does_not_leave(
    tmp_path: Path, spares: Spares, planted: str
) -> None:
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    spooled = spool(home.spool(1), spares)
    plan = plan_for(spooled)
    assert find_spooled(home, plan, LAYOUT, key=OWN) is not None
    (spooled.folder / "durable").touch()  # whoever writes there would
    if planted == "signature":
        stranger = Ed25519PrivateKey.generate()
        path = spooled.folder / "contribution.json"
        path.write_bytes(to_json(spooled.contribution.signed(stranger)))
    else:
        text = b"the text of a document".ljust(len(ENCODED[0]))
        fragments = spooled.folder / "fragments.bin"
        fragments.write_bytes(text + fragments.read_bytes()[len(text) :])
        digests = [hashlib.sha256(text).hexdigest(), *(d.hex() for d in spooled.digests[1:])]
        (spooled.folder / "digests.json").write_text(json.dumps(digests))
    assert find_spooled(home, plan, LAYOUT, key=OWN) is None
