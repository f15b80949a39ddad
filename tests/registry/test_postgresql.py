"""A registry in a real PostgreSQL passes the suites that every backend must pass; and what is
peculiar to PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from registry.client import open_registry, upgrade_registry
from registry.errors import (
    InvalidInput,
    RegistryCorrupt,
    RegistryError,
    RegistryFull,
    RegistryMissing,
    RegistryReadOnly,
    RegistryTooNew,
    RegistryTooOld,
)
from registry.jobs import ANY_DEVICE
from registry.location import locate
from registry.postgresql import PostgresqlDatabase, open_postgresql, translate
from registry.records import Page, Wanted
from registry.schema import ALEMBIC_VERSION, JOBS, META, METADATA, SCHEMA_HEAD
from registry.signing import SigningKeys
from registry.store import Registry
from tests.registry import children, postgres, samples
from tests.registry.conformance import RegistryConformance
from tests.registry.job_conformance import JobConformance
from tests.registry.samples import NOW

PROCESSES = 4


@pytest.fixture(scope="module")
def server() -> Iterator[URL]:
    with postgres.server() as url:
        yield url


@pytest.fixture(scope="module")
def made(server: URL, tmp_path_factory: pytest.TempPathFactory) -> URL:
    """A database with the registry's tables."""
    url = postgres.new_database(server, "made")
    upgrade_registry(postgres.with_artifacts(url, tmp_path_factory.mktemp("unused")))
    return url


@pytest.fixture
def url(made: URL) -> URL:
    postgres.empty(made)
    return made


@pytest.fixture
def address(url: URL, tmp_path: Path) -> str:
    return postgres.with_artifacts(url, tmp_path / "artifacts")


@pytest.fixture
def registry(address: str) -> Registry:
    return open_registry(address, create=False)


@pytest.fixture
def fresh(server: URL, request: pytest.FixtureRequest) -> URL:
    """An empty database of this test's own."""
    return postgres.new_database(server, request.node.name)


class TestPostgresqlRegistry(RegistryConformance):
    pass


class TestPostgresqlJobs(JobConformance):
    pass


# Making and upgrading


def test_an_empty_database_is_missing_until_it_is_made(fresh: URL, tmp_path: Path) -> None:
    address = postgres.with_artifacts(fresh, tmp_path)
    with pytest.raises(RegistryMissing, match="empty"):
        open_registry(address, create=False)
    assert open_registry(address).candidates() == ()
    assert upgrade_registry(address) == (SCHEMA_HEAD, SCHEMA_HEAD)


def test_the_schema_is_what_the_migrations_make(made: URL) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with PostgresqlDatabase(made).read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        partial = text("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '% WHERE %'")
        assert set(connection.scalars(partial)) == {
            "one_current_record",
            "one_open_job",
            "one_unfinished_study",
        }


def test_processes_that_make_it_at_once_agree(fresh: URL, tmp_path: Path) -> None:
    address = postgres.with_artifacts(fresh, tmp_path)
    before = children.together(children.upgrade, [(address,)] * PROCESSES)
    assert sorted(before, key=str) == [SCHEMA_HEAD] * (PROCESSES - 1) + [None]


def test_a_database_of_others_is_left_alone(fresh: URL) -> None:
    with postgres.administrator(fresh).connect() as connection:
        connection.execute(text("CREATE TABLE theirs (id integer)"))
    with pytest.raises(RegistryCorrupt, match="not a registry"):
        open_postgresql(fresh, create=True)


@pytest.fixture
def revised(url: URL) -> Iterator[PostgresqlDatabase]:
    """A registry opened while its schema was this release's."""
    yield open_postgresql(url, create=False)
    revise(url, SCHEMA_HEAD, "0_1_0")


def revise(url: URL, revision: str, reader: str) -> None:
    with postgres.administrator(url).connect() as connection:
        connection.execute(update(ALEMBIC_VERSION).values(version_num=revision))
        connection.execute(update(META).values(value=reader))


def test_a_newer_schema_is_read_where_it_may_be_and_never_written(
    url: URL, revised: PostgresqlDatabase
) -> None:
    revise(url, "9_0_0", "0_1_0")
    newer = open_postgresql(url, create=False)
    assert newer.schema_state().revision == "9_0_0"
    for database in (newer, revised):
        with pytest.raises(RegistryTooNew), database.write():
            pytest.fail("it was given a transaction")
    revise(url, "9_0_0", "9_0_0")
    with pytest.raises(RegistryTooNew):
        open_postgresql(url, create=False)


def test_an_older_schema_asks_for_its_upgrade(url: URL, revised: PostgresqlDatabase) -> None:
    revise(url, "0_2_0", "0_1_0")
    with pytest.raises(RegistryTooOld, match="0_2_0"):
        open_postgresql(url, create=False)
    with pytest.raises(RegistryTooOld), revised.write():
        pytest.fail("it was given a transaction")


# Transactions


def test_publishers_of_one_key_leave_one_current_record(address: str, registry: Registry) -> None:
    published = children.together(
        children.publish_one, [(address, number) for number in range(PROCESSES)]
    )
    assert len(set(published)) == PROCESSES
    versions = registry.history(limit=PROCESSES * 2)
    assert {found.record.id for found in versions} == set(published)
    assert [found.status for found in versions].count("current") == 1
    assert registry.check() == []


def test_one_study_is_begun_and_one_job_enqueued(address: str, registry: Registry) -> None:
    assert len(set(children.together(children.begin_study, [(address,)] * PROCESSES))) == 1
    asked = children.together(children.enqueue_job, [(address,)] * PROCESSES)
    assert sorted(is_new for _, is_new in asked) == [False] * (PROCESSES - 1) + [True]


def test_each_job_is_done_by_one_process(address: str, registry: Registry) -> None:
    jobs = PROCESSES * 2
    for number in range(jobs):
        registry.jobs.enqueue(samples.job(10**9 + number), priority=0, now=NOW)
    done = children.together(
        children.work_until_empty,
        [(address, str(number), (ANY_DEVICE,)) for number in range(PROCESSES)],
    )
    assert sorted(job for mine in done for job in mine) == list(range(1, jobs + 1))


def test_a_writer_waits_no_longer_than_it_was_told(url: URL) -> None:
    first, second = (open_postgresql(url, create=False) for _ in range(2))
    with first.write():
        with pytest.raises(RegistryError, match="busy"), second.write(wait_s=0.05):
            pytest.fail("it was given a transaction")
        assert second.schema_state().revision == SCHEMA_HEAD
    with second.write(wait_s=0.05):
        pass


def test_a_reader_keeps_its_view_and_cannot_write(url: URL, registry: Registry) -> None:
    database = open_postgresql(url, create=False)
    with database.read() as connection:
        before = connection.execute(JOBS.select()).all()
        registry.jobs.enqueue(samples.job(), priority=0, now=NOW)
        assert connection.execute(JOBS.select()).all() == before == []
    with pytest.raises(RegistryReadOnly), database.read() as connection:
        connection.execute(JOBS.delete())


# Errors


def test_a_role_that_may_only_read_reads(url: URL, registry: Registry, tmp_path: Path) -> None:
    registry.publish([samples.record()], now=NOW)
    with postgres.administrator(url).connect() as connection:
        connection.execute(text("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data"))
    address = postgres.with_artifacts(url.set(username="reader"), tmp_path)
    reader = open_registry(address, create=False)
    (found,) = reader.candidates()
    reader.note_fetch(found.record.id, now=NOW)
    with pytest.raises(RegistryReadOnly, match="permission denied"):
        reader.publish([samples.record(minutes=1)], now=NOW)


def test_a_missing_database_and_a_missing_server(server: URL, tmp_path: Path) -> None:
    with pytest.raises(RegistryMissing, match="does not exist"):
        open_postgresql(server.set(database="nowhere"), create=True)
    away = server.update_query_dict({"host": str(tmp_path)})
    with pytest.raises(RegistryError, match="cannot be reached"):
        open_postgresql(away, create=True)


class DriverError(Exception):
    """As psycopg raises them: with PostgreSQL's code."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("what it said\nin detail")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("state", "kind", "said"),
    [
        ("53100", RegistryFull, "cannot grow"),
        ("25006", RegistryReadOnly, "cannot be written"),
        ("55P03", RegistryError, "busy"),
        ("57P01", RegistryError, "cannot be reached"),
        ("28P01", RegistryError, "cannot be reached"),
        ("XX001", RegistryCorrupt, "damaged"),
        ("XX000", RegistryError, "cannot be used"),
        (None, RegistryError, "cannot be used"),
    ],
)
def test_errors_are_told_apart_by_their_code(
    state: str | None, kind: type[RegistryError], said: str
) -> None:
    error = translate(DBAPIError("SELECT 1", {}, DriverError(state)), "the registry")
    assert type(error) is kind
    assert said in error.message
    assert "what it said" in error.message
    assert "in detail" not in error.message


def test_a_role_that_is_missing_is_no_missing_registry(server: URL) -> None:
    with pytest.raises(RegistryError, match="nobody") as refusal:
        open_postgresql(server.set(username="nobody"), create=True)
    assert type(refusal.value) is RegistryError


def test_damage_is_found(url: URL, registry: Registry) -> None:
    registry.jobs.enqueue(samples.job(), priority=0, now=NOW)
    assert registry.check() == []
    with open_postgresql(url, create=False).write() as connection:
        connection.execute(update(JOBS).values(body=b"{}"))
    assert [problem for problem in registry.check() if "job 1" in problem]


# URLs


@pytest.mark.parametrize(
    "query", ["", "?artifacts=", "?artifacts=relative", "?artifacts=/a&artifacts=/b"]
)
def test_a_url_names_one_folder_for_artifacts(query: str) -> None:
    with pytest.raises(InvalidInput, match="artifacts") as refusal:
        locate(f"postgresql+psycopg://me:secret@host/db{query}")
    assert "secret" not in str(refusal.value)


def test_a_password_is_in_the_address_alone() -> None:
    location = locate("postgresql+psycopg://me:secret@host/db?artifacts=/mnt/a&sslmode=require")
    assert "secret" not in f"{location!r} {location.name}"
    assert locate(location.address) == location
    assert "artifacts" not in location.name


def test_a_registry_that_is_no_file_says_so(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="not a file"):
        registry.path.exists()


def test_what_a_service_asks_of_it(registry: Registry, tmp_path: Path) -> None:
    """Pages, signatures and known keys; it gives no version, so that nothing is remembered."""
    artifact = registry.put_artifact("log", b"said the worker")
    many = [samples.record(threads=n + 1, artifacts=(artifact,)) for n in range(3)]
    registry.publish(many, now=NOW, keys=SigningKeys(tmp_path / "keys"))
    found, after = registry.candidate_page(Wanted(device="cpu"), Page(2))
    more, end = registry.candidate_page(Wanted(device="cpu"), Page(2, after))
    assert (found + more, end) == (registry.candidates(), None)
    signed = registry.artifact_signatures([record.id for record in many])
    assert {name for name, _ in signed} == {record.id for record in many}
    assert all(signed.values())
    assert registry.known_keys([many[0].key.digest, "f" * 64]) == {many[0].key.digest}
    registry.note_fetches({many[0].id: 2, "f" * 64: 1}, NOW)
    assert registry.record(many[0].id).fetches == 2
    assert registry.version() is None
