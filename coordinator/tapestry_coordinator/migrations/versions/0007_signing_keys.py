"""with which key a contribution was signed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    column = sa.Column("signing_key", sa.String(length=64), nullable=False, server_default="")
    op.add_column("contributions", column)


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("contributions") as batch:
        batch.drop_column("signing_key")
