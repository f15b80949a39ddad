"""Look for damage, and remove what nothing refers to any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, select, union

from registry.artifacts import ArtifactFolder
from registry.database import Database
from registry.errors import RegistryCorrupt, RegistryError, RegistryTooNew
from registry.inventories import inventory_of
from registry.jobs import job_of
from registry.records import select_records, stored
from registry.rows import AnyRow, to_time
from registry.schema import (
    ARTIFACTS,
    INVENTORIES,
    JOBS,
    RECORD_ARTIFACTS,
    STUDIES,
    TIMING_PLACES,
    TIMINGS,
    TRIALS,
)
from registry.studies import study_row, trial_of
from registry.timings import place, stored_timing


@dataclass(frozen=True)
class Collected:
    """What the collector removed: names of files, and the room they took."""

    files: tuple[str, ...]
    freed_bytes: int


def check(database: Database, folder: ArtifactFolder) -> list[str]:
    """Everything damaged, one line each; empty when all is well."""
    problems: list[str] = []
    for find in (database.problems, _row_problems, _artifact_problems(folder)):
        try:
            with database.read() as connection:
                problems.extend(find(connection))
        except RegistryError as error:
            problems.append(error.message)
    return problems


def _row_problems(connection: Connection) -> Iterator[str]:
    readers: list[tuple[Any, Callable[[AnyRow], object]]] = [
        (select_records(), stored),
        (_all(STUDIES), study_row),
        (_all(TRIALS), trial_of),
        (_all(INVENTORIES), inventory_of),
        (_all(TIMINGS), stored_timing),
        (_all(TIMING_PLACES), place),
        (_all(JOBS), job_of),
    ]
    for query, read in readers:
        for row in connection.execute(query):
            try:
                read(row)
            except RegistryCorrupt as error:
                yield error.message
            except RegistryTooNew:
                continue


def _all(table: Table) -> Any:
    return select(table)


def _artifact_problems(folder: ArtifactFolder) -> Callable[[Connection], Iterator[str]]:
    def find(connection: Connection) -> Iterator[str]:
        for row in connection.execute(select(ARTIFACTS)):
            problem = folder.problem(row.sha256, row.size_bytes)
            if problem is not None:
                yield problem

    return find


def collect_garbage(
    database: Database, folder: ArtifactFolder, *, now: datetime, grace: timedelta
) -> Collected:
    """Remove artifacts that no record and no trial names and that were put before `now - grace`.

    Rows go first, in a transaction of their own, and files after: killed in between, a file stays
    without a row, and the next call takes it.
    """
    cutoff = now - grace
    with database.write() as connection:
        old = ARTIFACTS.c.put_at < to_time(cutoff)
        connection.execute(delete(ARTIFACTS).where(old, ARTIFACTS.c.sha256.not_in(_named())))
    # Placing a file and writing its row happen under this lock too, so a file without a row is
    # nobody's here.
    with database.write() as connection:
        known = set(connection.scalars(select(ARTIFACTS.c.sha256)))
        orphans = [path for path in folder.files() if path.name not in known]
        return _remove([*orphans, *folder.temporaries()], cutoff)


def _named() -> Any:
    logs = select(TRIALS.c.log_sha256).where(TRIALS.c.log_sha256.is_not(None))
    return union(select(RECORD_ARTIFACTS.c.sha256), logs)


def _remove(paths: list[Path], cutoff: datetime) -> Collected:
    removed, freed_bytes = [], 0
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:  # a temporary that was placed in the meantime
            continue
        if datetime.fromtimestamp(status.st_mtime, UTC) < cutoff:
            path.unlink(missing_ok=True)
            removed.append(path.name)
            freed_bytes += status.st_size
    return Collected(tuple(removed), freed_bytes)
