"""The registry's tables.

Values that people filter by are columns; everything else is the canonical JSON of a frozen type in
`body`, with its SHA-256 beside it. Bodies are bytes, not text: a flipped bit must reach the digest
check instead of a text decoder. Times are UTC in ISO 8601 with microseconds, so they sort as text.

Tables are made by the migrations alone. They say for PostgreSQL too which indexes are partial; said
here, it would load SQLAlchemy's PostgreSQL dialect wherever a file is opened.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

SCHEMA_HEAD = "0_3_0"
"""The newest migration, named by its release. A test holds it equal to alembic's head."""

RECORD_READER = 1
"""What this release understands of a record's JSON. Raised when `TuningRecord` gains or loses a
field: a row says the lowest reader it needs, and a reader below that skips it."""

DIGEST = String(64)
TIME = String(32)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ALEMBIC_VERSION = Table(
    "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
)
"""Alembic's own table, read here so that opening a registry does not import alembic."""

META = Table(
    "meta",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`minimum_reader`: the oldest release of the schema whose readers can read this one."""

STUDIES = Table(
    "studies",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("identity", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("model_name", Text, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("finished_at", TIME),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    Column("summary", LargeBinary),
    CheckConstraint(
        "status IN ('running', 'interrupted', 'finished', 'failed')", name="known_status"
    ),
    Index(None, "model_name", "started_at"),
    Index(
        "one_unfinished_study",
        "identity",
        unique=True,
        sqlite_where=text("status IN ('running', 'interrupted')"),
    ),
)

ARTIFACTS = Table(
    "artifacts",
    METADATA,
    Column("sha256", DIGEST, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("put_at", TIME, nullable=False, index=True),
)
"""Bytes that are in the artifact folder. `put_at` is renewed when the same bytes are put again."""

TRIALS = Table(
    "trials",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False, index=True),
    Column("rung", String(16), nullable=False),
    Column("plan_digest", DIGEST, nullable=False, index=True),
    Column("log_sha256", ForeignKey("artifacts.sha256"), index=True),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    sqlite_autoincrement=True,
)

RECORDS = Table(
    "records",
    METADATA,
    Column("id", DIGEST, primary_key=True),
    Column("publication", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column(
        "superseded_by",
        ForeignKey("records.id", deferrable=True, initially="DEFERRED"),
    ),
    Column("revoked_reason", Text),
    Column("revoked_at", TIME),
    Column("published_at", TIME, nullable=False),
    Column("key_digest", DIGEST, nullable=False),
    Column("family_digest", DIGEST, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("weights", Text, nullable=False),
    Column("device", String(16), nullable=False),
    Column("hardware_digest", DIGEST, nullable=False),
    Column("runtime_digest", DIGEST, nullable=False),
    Column("workload_digest", DIGEST, nullable=False),
    Column("plan_digest", DIGEST, nullable=False),
    Column("plan_format", Integer, nullable=False),
    Column("minimum_reader", Integer, nullable=False),
    Column("objective", String(16), nullable=False),
    Column("policy", String(16), nullable=False),
    Column("calibrated", Boolean, nullable=False),
    Column("budget_bytes", BigInteger, nullable=False),
    Column("host_budget_bytes", BigInteger),
    Column("peak_vram_bytes", BigInteger, nullable=False),
    Column("step_ms", Float, nullable=False),
    Column("latency_s", Float),
    Column("study", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    Column("key_id", String(64)),
    Column("signature", Text),
    CheckConstraint("status IN ('current', 'superseded', 'revoked')", name="known_status"),
    Index(None, "architecture", "status", "device", "hardware_digest"),
    Index(None, "model_name", "status", "device", "hardware_digest"),
    Index(None, "key_digest", "publication"),
    Index(None, "family_digest", "publication"),
    Index(None, "published_at"),
    Index(None, "study"),
    Index(
        "one_current_record",
        "key_digest",
        unique=True,
        sqlite_where=text("status = 'current'"),
    ),
)
"""One row a published record. `publication` numbers the calls of `publish`, so "before" has a
meaning that no clock can upset."""

RECORD_ARTIFACTS = Table(
    "record_artifacts",
    METADATA,
    Column("record_id", ForeignKey("records.id"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("sha256", ForeignKey("artifacts.sha256"), primary_key=True, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("key_id", String(64)),
    Column("signature", Text),
)

FETCHES = Table(
    "fetches",
    METADATA,
    Column("record_id", ForeignKey("records.id"), primary_key=True),
    Column("fetches", Integer, nullable=False),
    Column("last_at", TIME, nullable=False),
)
"""Apart from `records`: a fetch must not rewrite a row whose bytes are proved by a digest."""

VERIFICATIONS = Table(
    "verifications",
    METADATA,
    Column("record_id", ForeignKey("records.id"), primary_key=True),
    Column("verified_at", TIME, nullable=False),
    Column("holds", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
)
"""The newest of each record. Those before it are studies."""

PINS = Table(
    "pins",
    METADATA,
    Column("key_digest", DIGEST, primary_key=True),
    Column("pinned_at", TIME, nullable=False),
)
"""Keys of records that people hold on to: the current record of such a key goes before others."""

INVENTORIES = Table(
    "inventories",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("made_at", TIME, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
)

TIMINGS = Table(
    "timings",
    METADATA,
    Column("key_digest", DIGEST, primary_key=True),
    Column("hardware_digest", DIGEST, nullable=False),
    Column("runtime_digest", DIGEST, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("timed_at", TIME, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    Index(None, "hardware_digest", "runtime_digest"),
)
"""The autoquant cache: one row a key, the best that is known of it (`registry.timings`)."""

TIMING_PLACES = Table(
    "timing_places",
    METADATA,
    Column("sha256", DIGEST, primary_key=True),
    Column("part", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),
    CheckConstraint("part IN ('hardware', 'runtime')", name="known_part"),
)
"""What the digests in `timings` stand for: a `Hardware` or a `Runtime`, whose digest is that of its
bytes. A timing whose place nobody described has no row here."""

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key_digest", DIGEST, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("enqueued_at", TIME, nullable=False),
    Column("available_at", TIME, nullable=False),
    Column("ended_at", TIME),
    Column("acquired_by", Text),
    Column("acquired_until", TIME),
    Column("token", Integer, nullable=False),
    Column("renewals", Integer, nullable=False),
    Column("lease_s", Float, nullable=False),
    Column("study_id", ForeignKey("studies.id")),
    Column("message", Text),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    CheckConstraint(
        "status IN ('queued', 'running', 'paused', 'done', 'failed', 'cancelled')",
        name="known_status",
    ),
    CheckConstraint(
        "(status = 'running') = (acquired_by IS NOT NULL)", name="running_jobs_have_an_owner"
    ),
    Index(None, "status", "selector", "priority"),
    Index(
        "one_open_job",
        "key_digest",
        unique=True,
        sqlite_where=text("status IN ('queued', 'running', 'paused')"),
    ),
    sqlite_autoincrement=True,
)
"""What a daemon shall tune. `token` grows whenever a job is acquired or taken away: who holds an
older one may no longer write (a fencing token). `renewals` counts heartbeats of one lease, which
lasts `lease_s` after each."""
