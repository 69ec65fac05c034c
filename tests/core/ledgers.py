"""Ledgers for tests: a coordinator's key, entries, heads, and histories that fork."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.ledger.entries import CHECKPOINT, CONTRIBUTION, Entry
from tapestry.ledger.heads import Head, SignedHead, cosign_head, origin_of, sign_head
from tapestry.ledger.merkle import Tree

KEY = Ed25519PrivateKey.from_private_bytes(b"coordinator".ljust(32, b"."))
PUBLIC = KEY.public_key().public_bytes_raw()
ORIGIN = origin_of("europe", "5f0c" * 16)


def member_key(member_id: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(member_id.encode().ljust(32, b"."))


def public_key(member_id: str) -> bytes:
    return member_key(member_id).public_key().public_bytes_raw()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entries(count: int, *, history: str = "one", since: int = 0) -> list[bytes]:
    """Leaves: the first `since` are those of every history."""
    names = ["one" if index < since else history for index in range(count)]
    return [
        Entry(
            kind=CHECKPOINT if index % 4 == 0 else CONTRIBUTION,
            round=index // 4,
            payload_digest=digest_of(f"{name} {index}"),
            member_id="" if index % 4 == 0 else "fr-bnf",
        ).leaf()
        for index, name in enumerate(names)
    ]


def tree_of(leaves: list[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def head_of(tree: Tree, size: int | None = None, *, key: Ed25519PrivateKey = KEY) -> SignedHead:
    size = tree.size if size is None else size
    return sign_head(Head(ORIGIN, size, tree.root(size)), key)


def cosigned(head: SignedHead, *members: str, now: float = 1_750_000_000) -> SignedHead:
    return head.with_cosignatures(
        [cosign_head(head.head, member_id=m, key=member_key(m), now=now) for m in members]
    )
