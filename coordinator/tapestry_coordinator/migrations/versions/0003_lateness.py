"""the round that uses a contribution; rounds that a member has missed, and its speed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply this revision."""
    for column in (
        sa.Column("missed_rounds", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("tokens_per_second", sa.Float(precision=53), nullable=False, server_default="0"),
    ):
        op.add_column("members", column)
    op.add_column("contributions", sa.Column("used_round", _ID, nullable=True))
    contributions = sa.table("contributions", sa.column("round"), sa.column("used_round"))
    op.execute(contributions.update().values(used_round=contributions.c.round))
    with op.batch_alter_table("contributions") as batch:
        batch.alter_column("used_round", existing_type=_ID, nullable=False)
    op.create_index(
        "contributions_by_use", "contributions", ["used_round", "member_id"], unique=True
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index("contributions_by_use", table_name="contributions")
    with op.batch_alter_table("contributions") as batch:
        batch.drop_column("used_round")
    with op.batch_alter_table("members") as batch:
        batch.drop_column("tokens_per_second")
        batch.drop_column("missed_rounds")
