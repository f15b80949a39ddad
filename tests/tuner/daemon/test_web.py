"""How the daemon is, asked over HTTP; and in a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from registry.errors import DeviceError
from registry.store import Registry
from tests.registry import samples
from tests.tuner.daemon.machine import DaemonMachine
from tuner.daemon.web import Health, served


@dataclass
class Served:
    port: int
    age_s: float = 0.0
    is_working: bool = False

    def ask(self, path: str) -> tuple[int, str]:
        return asked(f"http://127.0.0.1:{self.port}{path}")


def asked(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def web(registry: Registry) -> Iterator[Served]:
    told = Served(0)
    health = Health(registry, lambda: told.age_s, lambda: told.is_working, 60.0)
    with served(health, 0) as port:
        told.port = port
        yield told


def test_a_loop_that_goes_round_is_healthy(web: Served) -> None:
    assert web.ask("/healthz") == web.ask("/readyz") == (200, "ok\n")
    web.age_s = 61.0
    for path in ("/healthz", "/readyz"):
        assert web.ask(path) == (503, "the loop stood still for 61 s\n")
    assert web.ask("/elsewhere")[0] == 404


def test_without_its_registry_it_is_healthy_but_not_ready(web: Served, registry: Registry) -> None:
    registry.path.unlink()
    assert web.ask("/healthz")[0] == 200
    status, why = web.ask("/readyz")
    assert status == 503
    assert str(registry.path) in why
    assert "tuner_job_running" in web.ask("/metrics")[1]


def test_metrics_count_jobs_by_status(web: Served, registry: Registry) -> None:
    for number in range(2):
        registry.jobs.enqueue(samples.job(10**9 + number), priority=0, now=samples.NOW)
    registry.jobs.cancel(1, now=samples.NOW)
    web.is_working, web.age_s = True, 1.5
    status, text = web.ask("/metrics")
    assert status == 200
    for line in (
        'tuner_jobs{status="queued"} 1.0',
        'tuner_jobs{status="cancelled"} 1.0',
        'tuner_jobs{status="running"} 0.0',
        "tuner_job_running 1.0",
        "tuner_loop_age_seconds 1.5",
    ):
        assert line in text.splitlines()


def test_a_port_that_is_taken_is_named(web: Served, registry: Registry) -> None:
    health = Health(registry, lambda: 0.0, lambda: False, 60.0)
    with pytest.raises(DeviceError, match=f"port {web.port}"), served(health, web.port):
        pass


def test_a_real_daemon_tells(machine: DaemonMachine, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[daemon]\nport = 0\n")
    daemon = machine.start("--config", str(config))
    try:
        lines = (re.search(r"url=(\S+)/metrics", line) for line in daemon.stderr or ())
        url = next(found[1] for found in lines if found)
        assert asked(f"{url}/healthz") == asked(f"{url}/readyz") == (200, "ok\n")
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert daemon.returncode == 0
