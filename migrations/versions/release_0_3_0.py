"""The queue of tuning jobs that daemons work through; records that people hold on to, and what came
of the last time that a record's plan was run again. Trials are found by their plan.

Nothing that was there is touched, so readers of 0_1_0 may still read.

Revision ID: 0_3_0
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0_3_0"
down_revision = "0_2_0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_jobs()
    create_indexes()
    create_pins()
    create_verifications()
    op.create_index("ix_trials_plan_digest", "trials", ["plan_digest"], unique=False)


def downgrade() -> None:
    """All of it can be made again; a registry is still never made older."""
    raise NotImplementedError("a registry is never downgraded")


def create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", sa.String(length=32), nullable=False),
        sa.Column("available_at", sa.String(length=32), nullable=False),
        sa.Column("ended_at", sa.String(length=32), nullable=True),
        sa.Column("acquired_by", sa.Text(), nullable=True),
        sa.Column("acquired_until", sa.String(length=32), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("renewals", sa.Integer(), nullable=False),
        sa.Column("lease_s", sa.Float(), nullable=False),
        sa.Column("study_id", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'done', 'failed', 'cancelled')",
            name=op.f("ck_jobs_known_status"),
        ),
        sa.CheckConstraint(
            "(status = 'running') = (acquired_by IS NOT NULL)",
            name=op.f("ck_jobs_running_jobs_have_an_owner"),
        ),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_jobs_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sqlite_autoincrement=True,
    )


def create_indexes() -> None:
    op.create_index(
        "ix_jobs_status_selector_priority",
        "jobs",
        ["status", "selector", "priority"],
        unique=False,
    )
    op.create_index(
        "one_open_job",
        "jobs",
        ["key_digest"],
        unique=True,
        sqlite_where=sa.text("status IN ('queued', 'running', 'paused')"),
        postgresql_where=sa.text("status IN ('queued', 'running', 'paused')"),
    )


def create_pins() -> None:
    op.create_table(
        "pins",
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        sa.Column("pinned_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("key_digest", name="pk_pins"),
    )


def create_verifications() -> None:
    op.create_table(
        "verifications",
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("verified_at", sa.String(length=32), nullable=False),
        sa.Column("holds", sa.Boolean(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["records.id"], name="fk_verifications_record_id"),
        sa.PrimaryKeyConstraint("record_id", name="pk_verifications"),
    )
