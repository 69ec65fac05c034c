"""Fill a coordinator's registry with the history of a federation that has run for long.

python benchmarks/filled_history.py COORDINATOR_FOLDER ROUNDS MEMBERS

The statements are real ones, signed and chained; the vectors that they name never were.
"""

import hashlib
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from found_vector import Vector, settings_for
from sqlalchemy import Engine, Table, insert

from tapestry.checkpoints.manifest import (
    Absence,
    Manifest,
    OuterRecord,
    Participation,
    RoundRecord,
)
from tapestry.checkpoints.statements import Contribution, payload_digest
from tapestry.identity.envelopes import to_json
from tapestry.identity.keys import public_bytes
from tapestry_coordinator.database import database_url, open_database
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.tables import contributions, evaluations, manifests, members

PARAMETERS = 65_536
ROUND_SECONDS = 3600.0
LANGUAGES = (
    "deu", "eng", "eus", "fra", "ind", "jpn", "khm", "rus", "spa", "tur", "ukr", "isl", "gle",
    "mri", "que", "yor", "amh", "kat", "hye", "tam",
)  # fmt: skip


def found_bench(folder: Path) -> CoordinatorHome:
    """Found a federation with a model of no importance."""
    founding = Founding(
        federation="bench", objective=Vector(PARAMETERS), create={}, pool=[], seed=0
    )
    found(folder, founding, settings_for, now=time.time())  # noqa: TID251
    return CoordinatorHome(folder.resolve())


def fill(home: CoordinatorHome, *, rounds: int, members_count: int, now: float) -> None:
    """Write `rounds` rounds of `members_count` members, the last an hour ago."""
    engine = open_database(database_url(home))
    try:
        History(home, engine, members_count=members_count, now=now).write(rounds)
    finally:
        engine.dispose()


class History:
    """Rounds of members that come and stay away, and learn."""

    def __init__(
        self, home: CoordinatorHome, engine: Engine, *, members_count: int, now: float
    ) -> None:
        """Into the registry of `home`."""
        self._engine = engine
        self._now = now
        self._key = home.load_signing_key()
        self._genesis = home.load_genesis()
        self._random = random.Random(1)  # noqa: S311 - a history, no secret
        self._ids = [
            f"{LANGUAGES[i % len(LANGUAGES)]}-institute-{i:03d}" for i in range(members_count)
        ]
        self._inner = home.load_settings().inner.settings()

    def write(self, rounds: int) -> None:
        """Write all tables."""
        started = self._now - rounds * ROUND_SECONDS
        self._insert(members, [self._member(name, started) for name in self._ids])
        parent = self._genesis.genesis_digest
        for number in range(1, rounds + 1):
            at = started + number * ROUND_SECONDS
            present = [name for name in self._ids if self._random.random() < 0.95]
            parts = list(self._contributions(number, parent, present))
            self._insert(contributions, [row for row, _digest in parts])
            manifest = self._manifest(number, parent, at, present, [digest for _, digest in parts])
            envelope = manifest.signed(self._key)
            parent = payload_digest(envelope)
            row = {"round": number, "digest": parent, "envelope": to_json(envelope).decode()}
            self._insert(manifests, [row])
            self._insert(evaluations, [self._evaluation(number, at, name) for name in present])

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(table), rows)

    def _member(self, name: str, at: float) -> dict[str, Any]:
        return {
            "member_id": name,
            "signing_key": _digest("key", name),
            "certificate_serial": "1",
            "previous_serial": "",
            "status": "active",
            "joined_at": at,
            "last_seen_at": self._now,
        }

    def _contributions(
        self, number: int, base: str, present: list[str]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        for name in present:
            key = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b".")[:32])
            envelope = Contribution(
                genesis=self._genesis.genesis_digest,
                round=number,
                base=base,
                member_id=name,
                codec="int8",
                fragments=1,
                root=_digest("root", name, number),
                tokens=self._inner.tokens,
                steps=self._inner.steps,
                norm=1.0,
                metrics={"loss_first": self._loss(number) + 0.05, "loss_last": self._loss(number)},
            ).signed(key)
            digest = payload_digest(envelope)
            text = to_json(envelope).decode()
            row = {
                "round": number,
                "member_id": name,
                "digest": digest,
                "envelope": text,
                "receipt": text,
                "norm": 1.0,
                "used_round": number,
                "signing_key": public_bytes(key).hex(),
            }
            yield row, digest

    def _manifest(
        self, number: int, parent: str, at: float, present: list[str], digests: list[str]
    ) -> Manifest:
        absent = sorted(set(self._ids) - set(present))
        return Manifest(
            round=number,
            genesis=self._genesis.genesis_digest,
            parent=parent,
            created_at=at,
            layout=self._genesis.newest.layout,
            elements=PARAMETERS,
            vector_root=_digest("vector", number),
            files=self._genesis.newest.files,
            made=RoundRecord(
                plan=_digest("plan", number),
                policy=_digest("policy"),
                inner=self._inner,
                codec="int8",
                quorum=1,
                gamma=0.5,
                influence_cap=1.0,
                clip=1.5,
                participation=tuple(
                    Participation(
                        member_id=name,
                        key=_digest("key", name),
                        tokens=self._inner.tokens,
                        weight=1 / len(present),
                        clip_factor=1.0,
                        norm=1.0,
                        root=_digest("root", name, number),
                        contribution=digest,
                    )
                    for name, digest in zip(present, digests, strict=True)
                ),
                absent=tuple(
                    Absence(member_id=name, reason="no contribution before the round closed")
                    for name in absent
                ),
                outer=OuterRecord(
                    optimizer="nesterov",
                    learning_rate=0.8,
                    momentum=0.9,
                    state_before=None,
                    state_root=None,
                ),
            ),
        )

    def _evaluation(self, number: int, at: float, name: str) -> dict[str, Any]:
        language = name.partition("-")[0]
        worse = 0.05 * LANGUAGES.index(language)
        return {
            "round": number,
            "member_id": name,
            "language": language,
            "bits_per_byte": self._loss(number) / 2 + worse,
            "held_out_bytes": 100_000,
            "at": at + 30.0,
        }

    def _loss(self, number: int) -> float:
        return 2.2 + 3.0 * math.exp(-number / 60) + 0.01 * self._random.random()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def main() -> None:
    """Fill the folder that the command line names."""
    home = found_bench(Path(sys.argv[1]))
    now = time.time()  # noqa: TID251
    fill(home, rounds=int(sys.argv[2]), members_count=int(sys.argv[3]), now=now)


if __name__ == "__main__":
    main()
