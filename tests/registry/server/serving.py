"""The service as it runs: uvicorn on a free port of loopback, in a thread of the test's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx2
from fastapi import APIRouter

from registry.client import open_registry
from registry.server.app import Options, Parts, create_app
from registry.server.audit import Audit
from registry.server.listening import Address, listening
from registry.server.memory import Fetches
from registry.server.running import server
from registry.server.tokens import Role, Tokens
from registry.signing import SigningKeys
from registry.store import Registry
from tests.registry.samples import NOW

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Served:
    """`now` is what the service's clock says. `keys` are the service's own, and trusted by it."""

    url: str
    folder: Path
    registry: Registry
    tokens: Tokens
    keys: SigningKeys
    now: datetime = NOW
    secrets: dict[Role, str] = field(default_factory=dict)

    def client(self, role: Role | None = None, **headers: str) -> httpx2.Client:
        if role is not None:
            headers["authorization"] = f"Bearer {self.secrets[role]}"
        return httpx2.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)

    def audit(self, name: str = "audit.jsonl") -> str:
        return (self.folder / "data" / name).read_text()


@contextmanager
def served(
    database: Path, folder: Path, options: Options | None = None, more: Sequence[APIRouter] = ()
) -> Iterator[Served]:
    """Of a registry that exists already; `folder` gets the configuration and the audit."""
    tokens, keys = Tokens(folder / "config"), SigningKeys(folder / "config")
    audit = Audit(folder / "data")
    with listening(Address(port=0)) as (listener, where):
        found = Served(
            f"http://{where}", folder, open_registry(database, create=False), tokens, keys
        )
        for role in ("read", "publish", "admin"):
            found.secrets[role] = tokens.create(role, role, NOW)
        fetches = Fetches(found.registry, every_s=0, now=lambda: found.now)
        parts = Parts(found.registry, tokens, keys, audit, fetches)
        app = create_app(
            parts, options or Options(), version="test", more=more, now=lambda: found.now
        )
        running = server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield found
        finally:
            running.should_exit = True
            thread.join()
            audit.close()


@contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[httpx2.Client, int]]:
    """A service in a process of its own, over a new registry in `folder`, whose configuration is
    `folder/home`: a client for it and its process id. It must end well on SIGTERM."""
    with started(folder, *options) as (where, pid), httpx2.Client(base_url=where) as client:
        yield client, pid


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Where it answers, and its process id."""
    home = ["--home", str(folder / "home")]
    serve = ["serve", "--registry", str(folder / "registry.sqlite3"), "--port", "0"]
    command = [sys.executable, "-m", "registry", *home, *serve, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    ) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().rsplit(" ", 1)[-1].strip(), child.pid
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
        finally:
            child.kill()
