"""roles of members, withdrawn invitations, the log of operators' actions."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    for table in ("members", "invitations"):
        op.add_column(
            table,
            sa.Column("role", sa.String(length=16), server_default="contributor", nullable=False),
        )
    op.add_column("invitations", sa.Column("withdrawn_at", sa.Float(precision=53), nullable=True))
    op.create_table(
        "actions",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("actions_by_what", "actions", ["what", "id"], unique=False)


def downgrade() -> None:
    """Take it back."""
    op.drop_index("actions_by_what", table_name="actions")
    op.drop_table("actions")
    op.drop_column("invitations", "withdrawn_at")
    op.drop_column("invitations", "role")
    op.drop_column("members", "role")
