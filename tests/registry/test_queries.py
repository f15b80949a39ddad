"""Finding records stays quick however many there are of other models and older versions."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from registry.records import candidates_query
from registry.schema import RECORDS
from registry.sqlite_database import open_database
from registry.store import Registry
from tests.registry import samples
from tests.registry.samples import NOW


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"architecture": "a" * 64}, "ix_records_architecture_status_device_hardware_digest"),
        (
            {"architecture": "a" * 64, "device": "cpu"},
            "ix_records_architecture_status_device_hardware_digest",
        ),
        ({"model_name": "tiny-flux"}, "ix_records_model_name_status_device_hardware_digest"),
    ],
)
def test_candidates_are_found_by_an_index(
    registry: Registry, wanted: dict[str, str], index: str
) -> None:
    query = candidates_query(wanted, None, 1).compile(
        dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
    )
    with open_database(registry.path, create=False).read() as connection:
        steps = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
    found = next(step.detail for step in steps if RECORDS.name in step.detail)
    assert f"SEARCH records USING INDEX {index}" in found
    assert "status=?" in found


def test_other_records_cost_nothing(registry: Registry) -> None:
    """Rows that do not match are never read: SQLite's own count of steps does not grow."""
    wanted = {"architecture": "a" * 64}
    registry.publish([samples.record()], now=NOW)
    alone = steps_of(registry, wanted)
    others = [samples.record(architecture=f"{n:064x}", threads=n + 1) for n in range(300)]
    registry.publish(others, now=NOW)
    for minutes in range(1, 20):
        registry.publish([samples.record(minutes=minutes)], now=NOW)
    assert len(registry.candidates(architecture="a" * 64)) == 1
    assert steps_of(registry, wanted) <= alone + 1


def steps_of(registry: Registry, wanted: dict[str, str]) -> int:
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
        connection.execute(candidates_query(wanted, None, 1)).all()
    return steps
