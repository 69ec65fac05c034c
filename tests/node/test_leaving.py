"""What a node takes along, verified on its own, and what it does alone without a network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tapestry.checkpoints.exports import Export, open_export
from tapestry.checkpoints.folder import read_envelope, read_lineage
from tapestry.checkpoints.statements import Contribution, Receipt
from tapestry.checkpoints.vector_file import open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.main import main
from tapestry.errors import ConfigError, TapestryError, UntrustedError
from tapestry.identity.envelopes import sign, to_json
from tapestry.identity.keys import generate_signing_key
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragments_root
from tapestry.storage.locks import alone
from tapestry.wire.egress import EgressLedger
from tapestry_node.exporting import contents, export_to, unfinished
from tapestry_node.home import NodeHome, NodeState
from tapestry_node.island import (
    Island,
    LocalParentage,
    forget_line,
    inner_settings,
    open_trainer,
    train_one,
)
from tapestry_node.lineage import LineageFile
from tapestry_node.memory import Fitting
from tapestry_node.spool import Spooled, spooling
from tapestry_node.verifying import verify_export
from tests.conftest import FOUNDED_AT, Federation
from tests.members import joined_member

NOW = datetime.now(UTC)
SENTENCE = "vefarinn vefur um nótt"


@pytest.fixture
def home(tmp_path: Path, federation: Federation) -> NodeHome:
    """A member's folder after it has taken part in round 1; its coordinator answers no more."""
    verified = verify_checkpoint(federation.newest)
    made = joined_member(
        tmp_path / "node",
        federation.home.load_authority(),
        member_id="is-lbs",
        issued=NOW,
        coordinator_key=verified.lineage.coordinator_key.hex(),
        genesis=verified.genesis_digest,
    )
    made.load_settings()
    shutil.copytree(federation.newest, made.checkpoint(1))
    made.save_state(
        NodeState(round=1, manifest=verified.manifest_digest, contributed=1, objective="causal-lm")
    )
    LineageFile(made.lineage).replace(read_lineage(federation.newest))
    with closing(EgressLedger(made.egress, to="localhost:1", clock=lambda: 1.0)) as ledger:
        ledger.record("/tapestry.v1.RoundsService/Report", b"x" * 7)
    receipt = Receipt(
        genesis=verified.genesis_digest,
        round=1,
        member_id="is-lbs",
        contribution="c" * 64,
        root="d" * 64,
        accepted_at=FOUNDED_AT,
    )
    signed = to_json(receipt.signed(federation.home.load_signing_key()))
    (made.folder / "receipts" / "round-000001.json").write_bytes(signed)
    packed = made.folder / "corpus" / "0123456789abcdef"
    packed.mkdir()
    (packed / "train.bin").write_text(SENTENCE, encoding="utf-8")
    meta = {"train_tokens": 12, "digest": "e" * 64, "a sentence": f"{SENTENCE} or two"}
    (packed / "corpus.json").write_text(json.dumps(meta), encoding="utf-8")
    return made


def exported(home: NodeHome, target: Path, **choices: Any) -> Path:
    chosen = {"card": home.checkpoint(1), "with_keys": False, "with_packed_corpus": False}
    export_to(target, home, contents(home, **{**chosen, **choices}), now=FOUNDED_AT)
    return target


# What is in an export


def test_an_export_is_whole_and_enough_to_found_anew(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours")
    shutil.rmtree(home.folder)  # another machine
    found = verify_export(target)
    assert (found["member_id"], found["checkpoint"], found["manifests"]) == ("is-lbs", 1, 2)
    assert (found["ledger_requests"], found["receipts"], found["card"]) == (1, 1, True)
    assert verify_checkpoint(target / "checkpoint").manifest.round == 1
    assert target.stat().st_mode & 0o777 == 0o700


def test_neither_text_nor_keys_leave_unless_asked_for(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours")
    files = [path for path in target.rglob("*") if path.is_file()]
    assert not [path for path in files if SENTENCE.encode() in path.read_bytes()]
    assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    described = json.loads((target / "corpus.json").read_text())
    assert described == {"packed": [{"digest": "e" * 64, "train_tokens": 12}]}


def test_keys_and_packed_text_come_along_when_asked_for(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours", with_keys=True, with_packed_corpus=True)
    for name in ("tls.key", "signing.key"):
        assert (target / "identity" / name).stat().st_mode & 0o777 == 0o600
    assert SENTENCE in (target / "packed-corpus/0123456789abcdef/train.bin").read_text()
    found = verify_export(target)
    assert found["keys"]
    assert found["packed_corpus"]


def test_an_attempt_that_was_cut_short_goes_on_where_it_stood(
    home: NodeHome, tmp_path: Path
) -> None:
    target = tmp_path / "ours"
    partial = unfinished(target)
    (partial / "checkpoint").mkdir(parents=True)
    kept = partial / "checkpoint" / "model.safetensors"
    shutil.copyfile(home.checkpoint(1) / "model.safetensors", kept)
    inode = kept.stat().st_ino
    (partial / "tls.key").write_text("of an attempt with other choices")
    damaged = partial / "node.toml"
    damaged.write_bytes(b"x" * (home.folder / "node.toml").stat().st_size)
    exported(home, target)
    assert (target / "checkpoint" / "model.safetensors").stat().st_ino == inode
    assert not (target / "tls.key").exists()
    assert not partial.exists()
    assert verify_export(target)["verified"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(
    home: NodeHome, tmp_path: Path
) -> None:
    with (home.folder / "pool" / "large.txt").open("wb") as file:
        file.truncate(2**43)  # sparse: takes no space here
    with pytest.raises(ConfigError, match=r"the export needs 8,796,\d+,\d+,\d+ bytes more"):
        exported(home, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# What is refused


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint/model.safetensors",
        "checkpoint/tapestry/lineage.jsonl",
        "egress.jsonl",
        "receipts/round-000001.json",
        "identity/root.crt",
        "node.toml",
    ],
)
@pytest.mark.parametrize("damage", [_flip, Path.unlink])
def test_a_file_that_is_damaged_or_missing_is_named(
    home: NodeHome, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    target = exported(home, tmp_path / "ours")
    damage(target / name)
    with pytest.raises(UntrustedError, match=f"{name}: (damaged|missing)"):
        open_export(target)


def test_a_file_that_nobody_signed_is_named(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours")
    (target / "run-me.py").write_text("")
    with pytest.raises(UntrustedError, match=r"run-me\.py: not part of the export"):
        open_export(target)


def test_an_export_of_another_format_says_so(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours")
    path = target / "export.json"
    later = sign("application/vnd.tapestry.export.v2+json", b"{}", home.identity.signing_key())
    path.write_bytes(to_json(later))
    with pytest.raises(ConfigError, match=r"of format v2\+json, this version .* reads v1"):
        open_export(target)


def test_whoever_signs_anew_with_another_key_is_found_out(home: NodeHome, tmp_path: Path) -> None:
    target = exported(home, tmp_path / "ours")
    path, key = target / "export.json", generate_signing_key()
    export = Export.parsed(read_envelope(path, what="export").payload, what="export")
    forged = export.model_copy(update={"signing_key": key.public_key().public_bytes_raw().hex()})
    path.write_bytes(to_json(forged.signed(key)))
    with pytest.raises(UntrustedError, match="did not say by its certificate"):
        open_export(target)


def test_without_the_whole_lineage_nothing_is_exported(home: NodeHome, tmp_path: Path) -> None:
    home.lineage.unlink()
    with pytest.raises(TapestryError, match="run the node once while the coordinator answers"):
        exported(home, tmp_path / "ours")


# The command, while the coordinator is down


def test_an_export_is_made_without_the_coordinator_and_says_how_to_finish(
    home: NodeHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "ours"
    assert main(["node", "leave", str(home.folder), "--export", str(target), "--yes"]) == 1
    said = capsys.readouterr()
    assert "the membership still stands" in said.err
    assert "--revoke-only" in said.err
    assert "the export is made of what is here" in said.out
    assert not verify_export(target)["card"]
    assert not home.left.exists()
    assert main(["node", "leave", str(home.folder), "--export", str(target), "--yes"]) == 1
    assert "exists already" in capsys.readouterr().err


def spooled(home: NodeHome) -> Path:
    """A finished contribution to round 2 that was not sent."""
    layout = open_vector_file(home.checkpoint(1) / "model.safetensors").layout
    folder, codec = home.spool(2), codec_named("int8")
    with spooling(folder, home.spare_spools) as fragments:
        for index in range(layout.fragments):
            start, stop = layout.bounds(index)
            fragments.write(codec.encode(np.zeros(stop - start, np.float32)))
    made = Contribution(
        genesis=home.identity.load().genesis,
        round=2,
        base=home.load_state().manifest,
        member_id="is-lbs",
        codec="int8",
        fragments=layout.fragments,
        root=fragments_root(fragments.digests).hex(),
        tokens=1,
        steps=1,
        norm=0.0,
    )
    envelope = made.signed(home.identity.signing_key())
    Spooled.completed(folder, made, envelope, fragments=fragments, layout=layout)
    return folder


@pytest.mark.parametrize("choice", [(), ("--spool", "drop"), ("--spool", "send")])
def test_what_was_not_sent_needs_a_word_and_is_never_deleted_or_exported(
    home: NodeHome, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: tuple[str, ...]
) -> None:
    folder, target = spooled(home), tmp_path / "ours"
    assert main(["node", "leave", str(home.folder), "--export", str(target), "--yes", *choice]) == 1
    said = capsys.readouterr()
    assert (folder / "contribution.json").is_file()
    assert target.exists() == (choice == ("--spool", "drop"))
    if not choice:
        assert "add --spool send, or --spool drop" in said.err
    elif target.exists():
        assert f"it stays in {folder}" in said.out
        assert not list(target.rglob("fragments.bin"))
    else:
        assert "does not answer" in said.err


def test_a_node_that_has_left_does_not_run(
    home: NodeHome, capsys: pytest.CaptureFixture[str]
) -> None:
    home.left.write_text("{}")
    assert main(["node", "run", str(home.folder), "--data", str(home.folder)]) == 1
    assert "this node has left loom" in capsys.readouterr().err


def test_status_says_for_how_long_the_coordinator_is_silent_and_what_works_without(
    home: NodeHome, capsys: pytest.CaptureFixture[str]
) -> None:
    since = datetime.now(UTC).timestamp() - 7205
    now = {"doing": "waiting", "silent_since": since, "pid": os.getpid()}
    home.progress.write_text(json.dumps(now))
    with alone(home.folder, who="this node"):
        assert main(["node", "status", str(home.folder)]) == 0
    said = capsys.readouterr().out
    assert "the coordinator has not answered for 2 h 0 min" in said
    assert "tapestry node island" in said


def test_the_end_of_a_long_lineage_is_read_without_the_rest(tmp_path: Path) -> None:
    file, key = LineageFile(tmp_path / "lineage.jsonl"), generate_signing_key()
    assert file.tail(20) == []
    file.replace([sign("test", f"{n}".encode() * 500, key) for n in range(200)])
    assert file.tail(20) == file.read()[-20:]
    assert file.tail(1000) == file.read()
    assert file.first() == file.read()[0]


# Island mode


@pytest.mark.slow
def test_an_island_round_that_takes_too_much_memory_begins_anew_with_fewer_sequences(
    home: NodeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{SENTENCE}, {number}. " * 40 for number in range(60)))
    island = Island.of(home, home.identity.load())
    inner = inner_settings(island, 2).model_copy(update={"sequences": 4, "accumulation": 2})
    trainer = open_trainer(island, [text], inner)
    plain, calls, said = trainer.objective.loss, [], list[str]()

    def train(rows: int) -> LocalParentage | None:
        return train_one(island, trainer, inner, [text], keep=0, rows=rows)

    def vector() -> np.ndarray:
        made = open_vector_file(island.newest / "model.safetensors")
        return np.array(made.vector, np.float32)

    assert train(1) is not None
    expected = vector()
    forget_line(island)

    def hungry(module: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(batch) > 1 and len(calls) % 2 == 0:  # gradients of the first part are there by then
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return plain(module, batch)

    monkeypatch.setattr(trainer.objective, "loss", hungry)
    fitting = Fitting(inner.sequences, said.append)
    assert fitting.run(train) is not None
    assert (calls[:4], set(calls[4:]), fitting.rows) == ([4, 4, 2, 2], {1}, 1)
    assert "begins anew with 2 sequences at a time" in said[0]
    np.testing.assert_array_equal(vector(), expected)

    def starved(_module: Any, _batch: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate more than there is")

    monkeypatch.setattr(trainer.objective, "loss", starved)
    with pytest.raises(ConfigError, match="one sequence at a time is too much too: free memory"):
        fitting.run(train)


def _unshared() -> list[str]:
    return ["unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"])]


_BETWEEN = "---\n"
_ON_THE_ISLAND = f"""
import json, os, sys
import tapestry.objectives.causal_lm, tapestry.objectives.sampling, tapestry_node.island
from tapestry.cli.main import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    print({_BETWEEN!r} * bool(number), end="", flush=True)
    if not (process := os.fork()):
        sys.exit(main(["node", "island", *arguments]))
    assert os.waitpid(process, 0)[1] == 0, arguments
"""
"""Processes without a network, forked from one: importing for each costs more than they do."""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("unshare") is None
    or subprocess.run([*_unshared(), "true"], check=False).returncode != 0,
    reason="needs a network namespace",
)
def test_a_node_trains_measures_and_samples_with_the_network_off(
    home: NodeHome, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    texts = [f"vefarinn vefur, {number}. " * 40 for number in range(60)]
    text.write_text("\n\n".join(texts), encoding="utf-8")
    before = {path: path.read_bytes() for path in home.folder.rglob("trainer/*")}

    node, data = str(home.folder), ("--data", str(text))
    commands = [
        ["train", node, *data, "--rounds", "2", "--steps", "2", "--json"],
        ["evaluate", node, *data, "--json"],
        ["sample", node, "--prompt", "vefarinn", "--tokens", "4"],
    ]
    done = subprocess.run(
        [*_unshared(), sys.executable, "-c", _ON_THE_ISLAND, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trained, evaluated, sampled = done.stdout.split(_BETWEEN)
    made = json.loads(trained)
    assert [one["local"] for one in made["made"]] == [1, 2]
    newest = Path(made["newest"])
    assert newest == home.island / "round-000001" / "local-000002"
    parent = json.loads((newest / "tapestry-parent.json").read_text())
    assert (parent["manifest"], parent["round"]) == (home.load_state().manifest, 1)
    assert len(parent["previous"]) == 64
    assert (newest / "README.md").read_text().startswith("# LOCAL, not a consensus checkpoint")
    scores = json.loads(evaluated)["bits_per_byte"]
    assert list(scores) == ["1", "1/local-1", "1/local-2"]
    assert scores["1/local-2"] < scores["1"]
    assert sampled.startswith("vefarinn")
    assert before == {path: path.read_bytes() for path in home.folder.rglob("trainer/*")}
    departures = home.egress.read_text().splitlines()
    assert len(departures) == 1, "nothing left"
