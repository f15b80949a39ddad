"""The load that the benchmark of the service makes, against a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks import serving
from registry.client import open_registry
from tests.registry.server.serving import served


def test_every_request_is_counted_and_wrong_answers_are_errors(tmp_path: Path) -> None:
    database = tmp_path / "registry.sqlite3"
    serving.fill(database, 2)
    with served(database, tmp_path) as service:
        port = int(service.url.rpartition(":")[2])
        right = asyncio.run(serving.closed_loop(port, serving.PATHS["candidates"], 3, 4))
        wrong = asyncio.run(serving.closed_loop(port, "/v1/nowhere", 2, 2))
        due = asyncio.run(serving.open_loop(port, "/v1/health", 2, 1000.0, 9))
    assert (right.requests, right.errors) == (12, 0)
    assert (wrong.requests, wrong.errors) == (4, 4)
    assert (due.requests, due.errors) == (9, 0)
    assert 0 < right.p50_ms <= right.p99_ms
    assert len(open_registry(database).candidates(model_name="tiny-flux")) == 1
