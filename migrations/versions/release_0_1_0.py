"""The first schema: studies, trials, records, artifacts and inventories.

Revision ID: 0_1_0
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0_1_0"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_meta()
    create_studies()
    create_artifacts()
    create_trials()
    create_records()
    create_record_artifacts()
    create_fetches()
    create_inventories()


def downgrade() -> None:
    """There is nothing before the first schema."""
    raise NotImplementedError("0_1_0 is the first schema")


def create_meta() -> None:
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.execute("INSERT INTO meta (key, value) VALUES ('minimum_reader', '0_1_0')")


def create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("identity", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("started_at", sa.String(length=32), nullable=False),
        sa.Column("finished_at", sa.String(length=32), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("summary", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "status IN ('running', 'interrupted', 'finished', 'failed')",
            name=op.f("ck_studies_known_status"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
    )
    op.create_index(
        "ix_studies_model_name_started_at", "studies", ["model_name", "started_at"], unique=False
    )
    op.create_index(
        "one_unfinished_study",
        "studies",
        ["identity"],
        unique=True,
        sqlite_where=sa.text("status IN ('running', 'interrupted')"),
        postgresql_where=sa.text("status IN ('running', 'interrupted')"),
    )


def create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("put_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_put_at", "artifacts", ["put_at"], unique=False)


def create_trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("rung", sa.String(length=16), nullable=False),
        sa.Column("plan_digest", sa.String(length=64), nullable=False),
        sa.Column("log_sha256", sa.String(length=64), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["log_sha256"], ["artifacts.sha256"], name="fk_trials_log_sha256"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_trials_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_trials_log_sha256", "trials", ["log_sha256"], unique=False)
    op.create_index("ix_trials_study_id", "trials", ["study_id"], unique=False)


def create_records() -> None:
    op.create_table(
        "records",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("publication", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("superseded_by", sa.String(length=64), nullable=True),
        sa.Column("revoked_reason", sa.Text(), nullable=True),
        sa.Column("revoked_at", sa.String(length=32), nullable=True),
        sa.Column("published_at", sa.String(length=32), nullable=False),
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        sa.Column("family_digest", sa.String(length=64), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("device", sa.String(length=16), nullable=False),
        sa.Column("hardware_digest", sa.String(length=64), nullable=False),
        sa.Column("runtime_digest", sa.String(length=64), nullable=False),
        sa.Column("workload_digest", sa.String(length=64), nullable=False),
        sa.Column("plan_digest", sa.String(length=64), nullable=False),
        sa.Column("plan_format", sa.Integer(), nullable=False),
        sa.Column("minimum_reader", sa.Integer(), nullable=False),
        sa.Column("objective", sa.String(length=16), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=False),
        sa.Column("calibrated", sa.Boolean(), nullable=False),
        sa.Column("budget_bytes", sa.BigInteger(), nullable=False),
        sa.Column("host_budget_bytes", sa.BigInteger(), nullable=True),
        sa.Column("peak_vram_bytes", sa.BigInteger(), nullable=False),
        sa.Column("step_ms", sa.Float(), nullable=False),
        sa.Column("latency_s", sa.Float(), nullable=True),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=True),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "status IN ('current', 'superseded', 'revoked')", name=op.f("ck_records_known_status")
        ),
        sa.ForeignKeyConstraint(
            ["superseded_by"],
            ["records.id"],
            name="fk_records_superseded_by",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_records"),
    )
    op.create_index(
        "ix_records_architecture_status_device_hardware_digest",
        "records",
        ["architecture", "status", "device", "hardware_digest"],
        unique=False,
    )
    op.create_index(
        "ix_records_family_digest_publication",
        "records",
        ["family_digest", "publication"],
        unique=False,
    )
    op.create_index(
        "ix_records_key_digest_publication", "records", ["key_digest", "publication"], unique=False
    )
    op.create_index(
        "ix_records_model_name_status_device_hardware_digest",
        "records",
        ["model_name", "status", "device", "hardware_digest"],
        unique=False,
    )
    op.create_index("ix_records_published_at", "records", ["published_at"], unique=False)
    op.create_index("ix_records_study", "records", ["study"], unique=False)
    op.create_index(
        "one_current_record",
        "records",
        ["key_digest"],
        unique=True,
        sqlite_where=sa.text("status = 'current'"),
        postgresql_where=sa.text("status = 'current'"),
    )


def create_record_artifacts() -> None:
    op.create_table(
        "record_artifacts",
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=True),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["record_id"], ["records.id"], name="fk_record_artifacts_record_id"
        ),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifacts.sha256"], name="fk_record_artifacts_sha256"
        ),
        sa.PrimaryKeyConstraint("record_id", "kind", "sha256", name="pk_record_artifacts"),
    )
    op.create_index("ix_record_artifacts_sha256", "record_artifacts", ["sha256"], unique=False)


def create_fetches() -> None:
    op.create_table(
        "fetches",
        sa.Column("record_id", sa.String(length=64), nullable=False),
        sa.Column("fetches", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["records.id"], name="fk_fetches_record_id"),
        sa.PrimaryKeyConstraint("record_id", name="pk_fetches"),
    )


def create_inventories() -> None:
    op.create_table(
        "inventories",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("made_at", sa.String(length=32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_inventories"),
    )
