"""How the daemon is, for monitors: `/healthz`, `/readyz` and Prometheus `/metrics`, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from registry.errors import DeviceError, RegistryError
from registry.jobs import JobStatus
from registry.store import Registry
from tuner.daemon.logs import say

LOOPBACK = "127.0.0.1"
STATUSES: tuple[JobStatus, ...] = ("queued", "running", "paused", "done", "failed", "cancelled")


class Health:
    """`age_s` is how long ago the loop last went round, `limit_s` what is too long, `is_working`
    whether a job of this daemon runs."""

    def __init__(
        self,
        registry: Registry,
        age_s: Callable[[], float],
        is_working: Callable[[], bool],
        limit_s: float,
    ) -> None:
        self.registry, self.age_s, self.is_working = registry, age_s, is_working
        self._limit_s = limit_s

    def sick(self) -> str | None:
        """Why it should be started anew."""
        age_s = self.age_s()
        return f"the loop stood still for {age_s:.0f} s" if age_s > self._limit_s else None

    def unready(self) -> str | None:
        """Why it cannot work now."""
        try:
            self.registry.jobs.counts()
        except RegistryError as error:
            return error.message
        return self.sick()


class _Metrics(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, text = "tuner_loop_age_seconds", "Since the daemon's loop last went round."
        yield GaugeMetricFamily(name, text, value=self._health.age_s())
        name, text = "tuner_job_running", "Whether a job of this daemon runs."
        yield GaugeMetricFamily(name, text, value=float(self._health.is_working()))
        try:
            counts = self._health.registry.jobs.counts()
        except RegistryError:
            return
        jobs = GaugeMetricFamily("tuner_jobs", "Jobs in the registry.", labels=["status"])
        for status in STATUSES:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs


@contextmanager
def served(health: Health, port: int) -> Iterator[int]:
    """Answers on `port` of loopback until the end; yields the port, a free one for 0. Raises
    DeviceError where it is taken."""
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(health))
    except OSError as error:
        raise DeviceError(
            f"port {port} of {LOOPBACK} cannot be used: {error.strerror}",
            hint="Choose another as daemon.port in config.toml, or leave it out.",
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        say("metrics served", url=f"http://{LOOPBACK}:{server.server_port}/metrics")
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    metrics = CollectorRegistry()
    metrics.register(_Metrics(health))
    answers: dict[str, Callable[[], tuple[HTTPStatus, bytes]]] = {
        "/healthz": lambda: _verdict(health.sick()),
        "/readyz": lambda: _verdict(health.unready()),
        "/metrics": lambda: (HTTPStatus.OK, generate_latest(metrics)),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path, lambda: (HTTPStatus.NOT_FOUND, b"not found\n"))
            status, body = answer()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """A line for each scrape would drown the daemon's own."""

    return Handler


def _verdict(why: str | None) -> tuple[HTTPStatus, bytes]:
    if why is None:
        return HTTPStatus.OK, b"ok\n"
    return HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n".encode()
