"""The migrations make the schema that the code describes, and old files still open."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from registry.client import open_registry, upgrade_registry
from registry.errors import RegistryTooOld
from registry.revision import schema_state
from registry.schema import METADATA, SCHEMA_HEAD
from registry.sqlite_database import open_database
from registry.store import Registry
from registry.upgrade import alembic_config
from tests.registry import samples

DATA = Path(__file__).parent / "data"


def test_the_constant_is_alembics_head() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [SCHEMA_HEAD]


def test_the_migrated_schema_is_the_described_one(registry: Registry) -> None:
    with open_database(registry.path, create=False).read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        migrated = statements(connection)
    with create_engine("sqlite://").connect() as connection:
        METADATA.create_all(connection)
        assert statements(connection) == migrated


def statements(connection: Connection) -> dict[str, set[str]]:
    """Each table's and index's own SQL as a set of its clauses: partial indexes and checks, which
    alembic does not compare, are in it."""
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE :own"),
        {"own": "alembic%"},
    )
    return {row.name: {line.strip(" ,\t") for line in row.sql.splitlines()} for row in rows}


def test_a_registry_of_release_0_1_0_opens(path: Path) -> None:
    path.write_bytes(gzip.decompress((DATA / "registry-0_1_0.sqlite3.gz").read_bytes()))
    with pytest.raises(RegistryTooOld, match="0_1_0"):
        open_registry(path)
    assert upgrade_registry(path) == ("0_1_0", SCHEMA_HEAD)
    registry = open_registry(path, create=False)
    current, superseded = registry.history(model_name="tiny-flux")
    assert (current.status, superseded.status) == ("current", "superseded")
    assert superseded.superseded_by == current.record.id
    assert (current.fetches, current.record.speedup) == (1, 1.0)
    assert current.signature is not None
    (study,) = registry.studies()
    assert (study.status, study.summary) == ("finished", {"best": 1.5})
    (trial,) = registry.trials(study.id)
    assert trial.measurement is not None
    assert registry.inventory("key") == samples.inventory()
    assert [problem for problem in registry.check() if "artifact" not in problem] == []
    registry.publish([samples.record(minutes=10)], now=samples.NOW)
    assert registry.all_timings() == ()
    assert registry.put_timings([samples.timing()], now=samples.NOW).new == 1


def test_a_registry_of_release_0_2_0_opens(path: Path) -> None:
    path.write_bytes(gzip.decompress((DATA / "registry-0_2_0.sqlite3.gz").read_bytes()))
    with pytest.raises(RegistryTooOld, match="0_2_0"):
        open_registry(path)
    assert upgrade_registry(path) == ("0_2_0", SCHEMA_HEAD)
    registry = open_registry(path, create=False)
    assert [stored.status for stored in registry.history()] == ["current", "superseded"]
    (timing,) = registry.all_timings()
    assert timing.timing == samples.timing()
    assert registry.timing_places().hardware == {samples.HARDWARE.digest: samples.HARDWARE}
    assert [problem for problem in registry.check() if "artifact" not in problem] == []
    assert registry.jobs.list() == ()
    job, is_new = registry.jobs.enqueue(samples.job(), priority=1, now=samples.NOW)
    assert (registry.jobs.get(job.id), is_new) == (job, True)
    current, superseded = registry.history()
    assert current.verification is superseded.verification is None
    registry.note_verification(samples.verification(current.record))
    assert registry.record(current.record.id).verification is not None


def test_an_older_release_may_read_a_registry_with_timings(registry: Registry) -> None:
    with open_database(registry.path, create=False).read() as connection:
        assert schema_state(connection).minimum_reader == "0_1_0"


def test_opening_does_not_import_alembic(registry: Registry) -> None:
    registry.publish([samples.record()], now=samples.NOW)
    program = (
        "import sys\n"
        "from registry.client import open_registry\n"
        f"registry = open_registry({str(registry.path)!r})\n"
        "assert len(registry.candidates(model_name='tiny-flux')) == 1\n"
        "slow = {'alembic', 'torch', 'sqlalchemy.dialects.postgresql', 'psycopg'}\n"
        "slow |= {'registry.upgrade', 'registry.postgresql'}\n"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
