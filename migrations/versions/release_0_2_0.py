"""The autoquant cache: timings of layers and blocks, and the machines they were taken on.

Nothing that was there is touched, so readers of 0_1_0 may still read.

Revision ID: 0_2_0
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0_2_0"
down_revision = "0_1_0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_timings()
    create_timing_places()


def downgrade() -> None:
    """Timings can be taken again; a registry is still never made older."""
    raise NotImplementedError("a registry is never downgraded")


def create_timings() -> None:
    op.create_table(
        "timings",
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        sa.Column("hardware_digest", sa.String(length=64), nullable=False),
        sa.Column("runtime_digest", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("timed_at", sa.String(length=32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("key_digest", name="pk_timings"),
    )
    op.create_index(
        "ix_timings_hardware_digest_runtime_digest",
        "timings",
        ["hardware_digest", "runtime_digest"],
        unique=False,
    )


def create_timing_places() -> None:
    op.create_table(
        "timing_places",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "part IN ('hardware', 'runtime')", name=op.f("ck_timing_places_known_part")
        ),
        sa.PrimaryKeyConstraint("sha256", name="pk_timing_places"),
    )
