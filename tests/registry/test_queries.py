"""Finding records stays quick however many there are of other models and older versions."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from registry.records import Page, Wanted, candidates_query
from registry.schema import RECORDS
from registry.sqlite_database import open_database
from registry.store import Registry
from tests.registry import samples
from tests.registry.samples import NOW


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(architecture="a" * 64), "ix_records_architecture_status_device_hardware_digest"),
        (
            Wanted(architecture="a" * 64, device="cpu"),
            "ix_records_architecture_status_device_hardware_digest",
        ),
        (Wanted(model_name="tiny-flux"), "ix_records_model_name_status_device_hardware_digest"),
    ],
)
def test_candidates_are_found_by_an_index(registry: Registry, wanted: Wanted, index: str) -> None:
    query = candidates_query(wanted).compile(
        dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
    )
    with open_database(registry.path, create=False).read() as connection:
        steps = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
    found = next(step.detail for step in steps if RECORDS.name in step.detail)
    assert f"SEARCH records USING INDEX {index}" in found
    assert "status=?" in found


def test_other_records_cost_nothing(registry: Registry) -> None:
    """Rows that do not match are never read: SQLite's own count of steps does not grow."""
    wanted = Wanted(architecture="a" * 64)
    registry.publish([samples.record()], now=NOW)
    alone = steps_of(registry, wanted)
    others = [samples.record(architecture=f"{n:064x}", threads=n + 1) for n in range(300)]
    registry.publish(others, now=NOW)
    for minutes in range(1, 20):
        registry.publish([samples.record(minutes=minutes)], now=NOW)
    assert len(registry.candidates(architecture="a" * 64)) == 1
    assert steps_of(registry, wanted) <= alone + 1


def steps_of(registry: Registry, wanted: Wanted) -> int:
    """Virtual machine instructions of the query, in hundreds."""
    database = open_database(registry.path, create=False)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with database.read() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.set_progress_handler(count, 100)
        connection.execute(candidates_query(wanted)).all()
    return steps


def test_pages_make_the_whole(registry: Registry) -> None:
    """Whatever was published together or one after another, and however a page ends."""
    registry.publish([samples.record(threads=n + 1) for n in range(3)], now=NOW)
    for n in range(3, 7):
        registry.publish([samples.record(threads=n + 1)], now=NOW)
    registry.publish([samples.record(name="sdxl", architecture="c" * 64)], now=NOW)
    wanted = Wanted(model_name="tiny-flux")
    for limit in (1, 2, 3, 7, 8):
        found, after = registry.candidate_page(wanted, Page(limit))
        while after is not None:
            more, after = registry.candidate_page(wanted, Page(limit, after))
            found += more
        assert found == registry.candidates(model_name="tiny-flux")
    assert registry.candidate_page(wanted, Page(5, after="f" * 64)) == ((), None)
