"""Signed notes and heads, against published examples, in their one spelling only.

The note of PeterNeumann is golang.org/x/mod/sumdb/note's; the heads are those of the C2SP
documents signed-note, tlog-checkpoint and tlog-cosignature; the keys of witnesses are those of
github.com/transparency-dev/formats.
"""

import base64
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tapestry.errors import UntrustedError
from tapestry.ledger.heads import open_head, read_head, witness_name
from tapestry.ledger.notes import (
    Note,
    cosign_note,
    cosigned_at,
    key_id,
    read_note,
    require_signature,
    sign_note,
    witness_key_id,
)
from tests.core.ledgers import KEY, ORIGIN, PUBLIC, cosigned, entries, head_of, public_key, tree_of

PETER_KEY = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
PETER_SECRET = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM="
)
SOFA = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q"
    "1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2o"
    "yin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


def test_the_published_note_is_ours_to_the_byte() -> None:
    key = Ed25519PrivateKey.from_private_bytes(PETER_SECRET)
    assert key_id("PeterNeumann", PETER_KEY).hex() == "c74f20a3"
    line = sign_note(PETER_TEXT, name="PeterNeumann", key=key)
    assert line.line == PETER_LINE
    note = Note(PETER_TEXT, (line,))
    assert note.body == f"{PETER_TEXT}\n{PETER_LINE}\n"
    again = read_note(note.body, what="note")
    assert again == note
    require_signature(again, name="PeterNeumann", public_key=PETER_KEY, what="note")


@pytest.mark.parametrize(
    ("verifier", "kind"),
    [
        ("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", key_id),
        ("Wit1+55ee4561+AVhZSmQj9+SoL+p/nN0Hh76xXmF7QcHfytUrI1XfSClk", key_id),
        ("TEST+7997405c+AQcC+FTVKf0jlTdHDY3rbevmnKxxPjigCXlVtGe6RIr6", key_id),
        ("remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2", witness_key_id),
    ],
)
def test_keys_have_their_published_ids(verifier: str, kind: Callable[[str, bytes], bytes]) -> None:
    name, expected, encoded = verifier.split("+", 2)
    assert kind(name, base64.b64decode(encoded)[1:]).hex() == expected


def test_the_published_head_is_read_and_spelled_again() -> None:
    note = read_note(SOFA, what="head")
    assert note.body == SOFA
    head = read_head(note.text, what="head")
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20852163)
    assert head.text == note.text
    witness = note.signatures[1]
    assert int.from_bytes(witness.signature[:8], "big") == 1679315147  # the document's own time
    assert len(witness.signature) == 8 + 64


def test_what_a_witness_signs_is_the_documents_message() -> None:
    """Two lines, and then the whole text of the head."""
    key = Ed25519PrivateKey.from_private_bytes(PETER_SECRET)
    text = read_note(SOFA, what="head").text
    line = cosign_note(text, name="w", key=key, now=1679315147.9)
    message = (
        "cosignature/v1\n"
        "time 1679315147\n"
        "example.com/behind-the-sofa\n"
        "20852163\n"
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )
    key.public_key().verify(line.signature[8:], message.encode())
    assert cosigned_at(Note(text, (line,)), name="w", public_key=PETER_KEY, what="") == 1679315147


@pytest.mark.parametrize(
    "body",
    [
        "",
        "text\n",
        "text\n\n",
        f"text\n\n{PETER_LINE}",  # no newline at the end
        f"text\n{PETER_LINE}\n",  # no empty line
        f"\n\n{PETER_LINE}\n",  # no text
        f"text\n\n{PETER_LINE}\n\n",
        f"text\n\n{PETER_LINE} \n",
        f"text\n\n{PETER_LINE.replace('— ', '- ')}\n",
        f"text\n\n{PETER_LINE.replace('Peter', 'Peter ')}\n",
        f"text\n\n{PETER_LINE.replace('Peter', 'Peter+')}\n",
        f"text\n\n{PETER_LINE.replace('PeterNeumann', '')}\n",
        f"text\n\n{PETER_LINE.replace('nAM=', 'nAN=')}\n",  # stray bits
        f"text\n\n{PETER_LINE[:-1]}\n",  # no padding
        f"text\n\n{PETER_LINE}\n{PETER_LINE}\n",
        f"te\tt\n\n{PETER_LINE}\n",
        f"te\rt\n\n{PETER_LINE}\n",
        "text\n\n— a AAAA\n",  # a key id without a signature
        b"t\xff\n\n" + PETER_LINE.encode() + b"\n",
        f"text\n\n{PETER_LINE}\n" + "x" * 300_000,
    ],
)
def test_another_spelling_of_a_note_is_refused(body: str | bytes) -> None:
    with pytest.raises(UntrustedError, match=r"^note: "):
        read_note(body, what="note")


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"o\n1\n{ROOT}",
        f"o\n1\n{ROOT}\n\n",
        f"\n1\n{ROOT}\n",
        f"o\n\n{ROOT}\n",
        "o\n1\n",
        f"o\n01\n{ROOT}\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n+1\n{ROOT}\n",
        f"o\n 1\n{ROOT}\n",
        f"o\n1_0\n{ROOT}\n",
        f"o\n\u0661\n{ROOT}\n",
        f"o\n9007199254740993\n{ROOT}\n",
        f"o\n{'9' * 5000}\n{ROOT}\n",
        f"o\n1\n{ROOT[:-1]}\n",
        f"o\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        "o\n1\nnot base64\n",
        f"o\n1\n{ROOT}\n" + "line\n" * 40,
    ],
)
def test_another_spelling_of_a_head_is_refused(text: str) -> None:
    with pytest.raises(UntrustedError, match=r"^head: "):
        read_head(text, what="head")


def test_a_head_counts_for_its_own_ledger_and_key_alone() -> None:
    head = cosigned(head_of(tree_of(entries(9))), "fr-bnf")
    opened = open_head(head.body, origin=ORIGIN, public_key=PUBLIC, what="head")
    assert opened == head
    with pytest.raises(UntrustedError, match=r"of the ledger 'tapestry/europe.*expected 'other'"):
        open_head(head.body, origin="other", public_key=PUBLIC, what="head")
    with pytest.raises(UntrustedError, match="not signed by tapestry/europe"):
        open_head(head.body, origin=ORIGIN, public_key=public_key("fr-bnf"), what="head")
    altered = head.body.replace("\n9\n", "\n8\n", 1)
    with pytest.raises(UntrustedError, match="altered since"):
        open_head(altered, origin=ORIGIN, public_key=PUBLIC, what="head")


def test_cosignatures_count_for_known_keys_and_once_for_each_key() -> None:
    head = cosigned(head_of(tree_of(entries(9))), "a", "b", "stranger")
    witnesses = {name: public_key(name) for name in ("a", "b", "c")}
    assert head.cosigned_by(witnesses) == {"a": 1_750_000_000, "b": 1_750_000_000}
    # The same key under two names is one witness.
    double = {"a": public_key("a"), "z": public_key("a")}
    twice = head.with_cosignatures(
        [
            cosign_note(
                head.head.text,
                name=witness_name(ORIGIN, "z"),
                key=Ed25519PrivateKey.from_private_bytes(b"a".ljust(32, b".")),
                now=1,
            )
        ]
    )
    assert list(twice.cosigned_by(double)) == ["a"]


def test_a_cosignature_of_another_head_is_refused_by_name() -> None:
    tree = tree_of(entries(9))
    elsewhere = cosigned(head_of(tree, 5), "a")
    stolen = head_of(tree, 9).with_cosignatures(list(elsewhere.note.signatures[1:]))
    with pytest.raises(UntrustedError, match=r"cosignature of .*/a is not over this head"):
        stolen.cosigned_by({"a": public_key("a")})


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_one_flipped_bit_in_a_head_is_refused_or_drops_one_line(place: int, bit: int) -> None:
    head = cosigned(head_of(tree_of(entries(5))), "a")
    raw = bytearray(head.body.encode())
    raw[place % len(raw)] ^= 1 << bit
    try:
        opened = open_head(bytes(raw), origin=ORIGIN, public_key=PUBLIC, what="head")
        names = opened.cosigned_by({"a": public_key("a")})
    except UntrustedError:
        return
    assert opened.head == head.head
    assert names == {}  # the witness's name or key id was hit: the line counts for nobody


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_note_or_refused(data: bytes) -> None:
    try:
        note = read_note(data, what="note")
    except UntrustedError:
        return
    assert note.body.encode() == data


def test_the_coordinators_key_signs_no_head_by_signing_something_else() -> None:
    """Heads begin with `tapestry/`, envelopes with `DSSEv1`, cosignatures with `cosignature/v1`."""
    head = head_of(tree_of(entries(3)))
    as_witness = cosign_note(head.head.text, name=ORIGIN, key=KEY, now=5)
    with pytest.raises(UntrustedError, match="not signed by"):
        note = Note(head.head.text, (as_witness,))
        require_signature(note, name=ORIGIN, public_key=PUBLIC, what="head")
