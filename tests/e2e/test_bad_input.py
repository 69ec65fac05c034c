"""What an operator gets for a mistake: one line that says what was wrong, where, and what to do."""

import shutil
import socket
import time
from pathlib import Path

import pytest

from tapestry.identity.certificates import create_authority
from tapestry.identity.invitations import Invitation, decode, encode
from tests.e2e.live import Live

pytestmark = pytest.mark.slow


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("tapestry: ")
    return lines[0]


def test_invitations_that_are_used_foreign_damaged_or_expired(live: Live) -> None:
    live.found(rounds=1)
    live.serve()
    text = live.invite("fr-bnf")
    first = live.call("node", "join", text, "--dir", str(live.folder / "one"))
    assert "fr-bnf is a member of loom" in first
    again = live.call("node", "join", text, "--dir", str(live.folder / "two"), code=1)
    assert "was used already: ask for a new one" in one_line(again)
    assert not (live.folder / "two" / "identity").exists()

    twice = live.call("node", "join", text, "--dir", str(live.folder / "one"), code=1)
    assert "is fr-bnf of loom already" in one_line(twice)

    cut = live.call("node", "join", text[:-20], "--dir", str(live.folder / "two"), code=1)
    assert "invitation" in one_line(cut)

    known = decode(live.invite("is-lbs"))
    foreign_root = create_authority("loom", now=_now()).certificate_pem
    foreign = Invitation(
        federation="loom",
        member_id="is-lbs",
        address=known.address,
        root_certificate=_der(foreign_root),
        token=known.token,
        expires_at=known.expires_at,
    )
    wrong = live.call("node", "join", encode(foreign), "--dir", str(live.folder / "two"), code=1)
    assert "is not the coordinator of this federation" in one_line(wrong)

    past = Invitation(
        federation="loom",
        member_id="is-lbs",
        address=known.address,
        root_certificate=known.root_certificate,
        token=known.token,
        expires_at=int(time.time()) - 1,  # noqa: TID251
    )
    late = live.call("node", "join", encode(past), "--dir", str(live.folder / "two"), code=1)
    assert "has expired: ask for a new one" in one_line(late)


def _now():  # noqa: ANN202
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.now(UTC)


def _der(pem: bytes) -> bytes:
    import ssl  # noqa: PLC0415

    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_a_node_waits_for_a_coordinator_that_is_not_there_yet(live: Live) -> None:
    live.found(rounds=1)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
    live.kill("coordinator")
    for member in ("a-lib", "b-lib"):
        live.run_node(member)
    live.wait(lambda: "does not answer" in live.log("a-lib"))
    live.serve()
    live.wait_done("a-lib")
    live.wait_done("b-lib")


def test_data_that_cannot_be_used_is_named(live: Live) -> None:
    live.found(rounds=1)
    live.serve()
    node = live.join("a-lib", "fra")
    live.kill("coordinator")

    def refusal(path: Path) -> str:
        return one_line(live.call("node", "run", str(node), "--data", str(path), code=1))

    assert "no such file or folder" in refusal(live.folder / "nowhere")
    empty = live.folder / "empty"
    empty.mkdir()
    assert "no text (it is empty); files that are read: .txt, .md" in refusal(empty)
    (empty / "scan.pdf").write_bytes(b"%PDF")
    assert "no text (found only .pdf)" in refusal(empty)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"fine\n\nbad \xff here", "text.txt:3: not UTF-8 after letter 4"),
        (b"a\n\nb", "too little text"),
    ],
)
def test_text_that_cannot_be_trained_on_stops_the_node_with_the_cause(
    live: Live, content: bytes, cause: str
) -> None:
    live.found(rounds=1)
    live.serve()
    for member, language in (("a-lib", "fra"), ("b-lib", "eus")):
        live.join(member, language)
    (live.folder / "a-lib-text" / "text.txt").write_bytes(content)
    for member in ("a-lib", "b-lib"):
        live.run_node(member)
    live.wait(lambda: live.processes.running["a-lib"].poll() is not None)
    assert live.processes.running["a-lib"].returncode == 1
    last = live.log("a-lib").strip().splitlines()[-1]
    assert last.startswith("tapestry: ")
    assert cause in last
    assert cause in live.progress("a-lib")["failure"]


def test_a_port_in_use_is_named(live: Live) -> None:
    live.found(rounds=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", live.port))
        taken.listen()
        said = live.call("coordinator", "serve", str(live.home.folder), code=1)
    last = said.strip().splitlines()[-1]
    assert f"cannot listen on 127.0.0.1:{live.port}: the port is in use" in last


def test_a_model_folder_without_safetensors_is_refused_and_nothing_is_left(live: Live) -> None:
    model = live.folder / "model"
    model.mkdir()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    target = live.folder / "fed"
    said = live.call(
        "coordinator", "init", str(target), "--name", "loom", "--model", str(model), code=1
    )
    assert "has no .safetensors file" in one_line(said)
    assert not target.exists()


def test_a_checkpoint_of_another_federation_is_refused(live: Live) -> None:
    live.found(rounds=1)
    said = live.call(
        "checkpoint", "verify", str(live.home.checkpoint(0)), "--federation", "0" * 16, code=1
    )
    assert "checkpoint of another federation" in one_line(said)


def test_a_changed_checkpoint_is_not_fine_tuned(live: Live) -> None:
    live.found(rounds=1)
    copy = live.folder / "copy"
    shutil.copytree(live.home.checkpoint(0), copy)
    model = copy / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    said = live.call(
        "finetune", "language", str(copy), str(live.folder / "out"), "--steps", "1",
        "--data", str(live.folder / "pool"), code=1,
    )  # fmt: skip
    assert "model.safetensors: changed" in one_line(said)
    assert not (live.folder / "out").exists()


def test_a_second_coordinator_does_not_serve_the_same_folder(live: Live) -> None:
    live.found(rounds=1)
    live.serve()
    said = live.call("coordinator", "serve", str(live.home.folder), code=1)
    assert "the coordinator runs already in another process; stop that first" in one_line(said)
