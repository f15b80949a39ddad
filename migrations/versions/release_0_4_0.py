"""What came of the last time that a record's plan was run again; trials are found by their plan.

Nothing that was there is touched, so readers of 0_1_0 may still read.

Revision ID: 0_4_0
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0_4_0"
down_revision = "0_3_0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "verifications",
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("verified_at", sa.String(length=32), nullable=False),
        sa.Column("holds", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["record_id"], ["records.id"], name=op.f("fk_verifications_record_id")
        ),
        sa.PrimaryKeyConstraint("record_id", name=op.f("pk_verifications")),
    )
    op.create_index(op.f("ix_trials_plan_digest"), "trials", ["plan_digest"], unique=False)


def downgrade() -> None:
    """A plan can be verified again; a registry is still never made older."""
    raise NotImplementedError("a registry is never downgraded")
