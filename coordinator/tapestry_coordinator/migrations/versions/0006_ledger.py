"""the ledger; what was recorded before it comes first, round by round."""

import hashlib
import json
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply this revision."""
    ledger = op.create_table(
        "ledger",
        sa.Column("position", _ID, autoincrement=False, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index("ledger_by_digest", "ledger", ["payload_digest", "position"], unique=False)
    op.create_table(
        "ledger_heads",
        sa.Column("size", _ID, autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "ledger_cosignatures",
        sa.Column("size", _ID, autoincrement=False, nullable=False),
        sa.Column("member_id", sa.String(length=64), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", "member_id"),
    )
    rows = [
        {"position": position, "entry": entry, "payload_digest": digest}
        for position, (entry, digest) in enumerate(_recorded(op.get_bind()))
    ]
    if rows:
        op.bulk_insert(ledger, rows)


def downgrade() -> None:
    """Take it back."""
    op.drop_table("ledger_cosignatures")
    op.drop_table("ledger_heads")
    op.drop_index("ledger_by_digest", table_name="ledger")
    op.drop_table("ledger")


def _recorded(connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """Yield the entries of what was recorded, and their digests: genesis, members, then rounds."""

    def rows(query: str) -> list[tuple[int, int, str, str, str]]:
        """Return round, order within it, kind, member and digest."""
        return [(r[0], r[1], r[2], r[3], r[4]) for r in connection.execute(sa.text(query))]

    found = rows("SELECT round, 5, 'checkpoint', '', digest FROM manifests")
    found += rows("SELECT round, 2, 'plan', '', digest FROM plans ORDER BY round, attempt")
    found += rows(
        "SELECT used_round, 3, 'contribution', member_id, digest FROM contributions "
        "ORDER BY used_round, member_id"
    )
    excluded = connection.execute(
        sa.text("SELECT round, member_id, kind, reason FROM exclusions ORDER BY id")
    )
    for number, member_id, kind, reason in excluded:
        said = {"kind": kind, "member_id": member_id, "reason": reason, "round": number}
        found.append((number, 4, "exclusion", member_id, _digest(_canonical(said).encode())))
    members = connection.execute(
        sa.text("SELECT member_id, signing_key FROM members ORDER BY joined_at, member_id")
    )
    for member_id, key in members:
        found.append((0, 6, "member", member_id, _digest(bytes.fromhex(key))))
    for number, _order, kind, member_id, digest in sorted(found, key=lambda row: row[:2]):
        entry = {"kind": kind, "payload_digest": digest, "round": number, "version": 1}
        if member_id:
            entry["member_id"] = member_id
        yield _canonical(entry), digest


def _canonical(value: dict[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
