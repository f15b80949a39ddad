"""How fast `tuner serve` answers, beside an endpoint of the same server that does nothing.

    python benchmarks/serving.py [--clients 64] [--requests 1000] [--records 1000] [--rate 300]

A registry with one exact plan for this machine's processor, among records of other models, is
served in a process of its own. First each client asks one request after another on a connection
of its own: an empty endpoint, get-plan and a page of candidates by turns, so that a machine that
gets slower meanwhile does so for all. Then get-plan alone is asked at a fixed rate, whoever waits
(open loop), and latencies count from when a request was due. Clients share the machine with the
server. Prints one line of JSON; exit code 1 where an answer was not 200.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastapi import APIRouter

from registry.client import open_registry
from registry.server.app import Options, Parts, create_app
from registry.server.audit import Audit
from registry.server.listening import Address, listening
from registry.server.memory import Fetches
from registry.server.running import server
from registry.server.tokens import Tokens
from registry.signing import SigningKeys
from tests.tuner.cli import example_registry as example
from tuner import catalog
from tuner.config import load_settings
from tuner.detect import detect
from tuner.serving import PlanRoutes

ROUNDS = 3
QUESTION = {"model": "tiny-flux", "vram": "2GB", "resolution": "64x64", "gpu": "cpu"}
PATHS = {
    "empty": "/v1/nothing",
    "get_plan": f"/v1/plan?{urlencode(QUESTION)}",
    "candidates": "/v1/candidates?model_name=tiny-flux",
}


@dataclass(frozen=True)
class Load:
    """Latencies in milliseconds; `errors` counts answers other than 200."""

    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float


def fill(path: Path, records: int) -> None:
    """One exact plan, and `records` of other models."""
    registry, here = open_registry(path), detect("cpu").environment
    inventory = catalog.shipped_inventory("tiny-flux")
    if inventory is None:
        raise SystemExit("tiny-flux ships no inventory")
    exact = example.record(
        "study",
        example.NOW,
        proved_on=here,
        architecture=inventory.architecture,
        weights=inventory.weights,
    )
    others = [
        example.record(
            "study",
            example.NOW,
            proved_on=here,
            model=example.MODEL.model_copy(update={"name": f"model-{number}"}),
            architecture=f"{number:064x}",
        )
        for number in range(1, records + 1)
    ]
    registry.publish([exact, *others], now=example.NOW)


def serve(folder: Path, told: Connection) -> None:
    """In a process of its own."""
    registry = open_registry(folder / "registry.sqlite3")
    settings = load_settings({"TUNER_HOME": str(folder / "home")})
    empty = APIRouter()

    @empty.get(PATHS["empty"])
    def nothing() -> dict[str, str]:
        return {}

    fetches = Fetches(registry)
    parts = Parts(
        registry,
        Tokens(settings.config_dir),
        SigningKeys(settings.config_dir),
        Audit(settings.data_dir),
        fetches,
    )
    more = (PlanRoutes(registry, settings, fetches).router(), empty)
    with listening(Address(port=0)) as (listener, _):
        told.send(listener.getsockname()[1])
        server(create_app(parts, Options(), version="benchmark", more=more)).run(sockets=[listener])


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, there))
    child.start()
    try:
        yield here.recv()
    finally:
        child.terminate()
        child.join()


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bool:
    """Whether the answer was 200. No HTTP library: it would be measured too."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(int(length.partition(":")[2]))
    return head.startswith("http/1.1 200 ")


async def closed_loop(port: int, path: str, clients: int, requests: int) -> Load:
    """Each client asks as soon as it was answered."""
    latencies_s: list[float] = []
    errors = 0

    async def client() -> None:
        nonlocal errors
        async with connection(port) as (reader, writer):
            for _ in range(requests):
                begun_s = time.perf_counter()
                is_right = await ask(reader, writer, path)
                latencies_s.append(time.perf_counter() - begun_s)
                errors += not is_right

    begun_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return load(latencies_s, errors, time.perf_counter() - begun_s)


async def open_loop(port: int, path: str, clients: int, rate: float, requests: int) -> Load:
    """Requests are due at a fixed rate, whoever is still waited for."""
    latencies_s: list[float] = []
    errors = 0
    due: asyncio.Queue[float | None] = asyncio.Queue()

    async def client() -> None:
        nonlocal errors
        async with connection(port) as (reader, writer):
            while (due_s := await due.get()) is not None:
                is_right = await ask(reader, writer, path)
                latencies_s.append(time.perf_counter() - due_s)
                errors += not is_right

    async def clock() -> None:
        begun_s = time.perf_counter()
        for number in range(requests):
            due_s = begun_s + number / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            due.put_nowait(due_s)
        for _ in range(clients):
            due.put_nowait(None)

    begun_s = time.perf_counter()
    await asyncio.gather(clock(), *(client() for _ in range(clients)))
    return load(latencies_s, errors, time.perf_counter() - begun_s)


def load(latencies_s: list[float], errors: int, wall_s: float) -> Load:
    p99_s = quantiles(latencies_s, n=100)[98]
    return Load(
        len(latencies_s),
        errors,
        round(len(latencies_s) / wall_s, 1),
        round(median(latencies_s) * 1e3, 2),
        round(p99_s * 1e3, 2),
    )


async def measured(port: int, given: argparse.Namespace) -> dict[str, object]:
    for path in PATHS.values():
        await closed_loop(port, path, 4, 5)
    rounds: dict[str, list[Load]] = {name: [] for name in PATHS}
    share = max(1, given.requests // ROUNDS)
    for _ in range(ROUNDS):
        for name, path in PATHS.items():
            rounds[name].append(await closed_loop(port, path, given.clients, share))
    empty = [item.per_second for item in rounds["empty"]]
    found: dict[str, object] = {
        name: [asdict(item) for item in items] for name, items in rounds.items()
    }
    for name in ("get_plan", "candidates"):
        ratios = [item.per_second / by for item, by in zip(rounds[name], empty, strict=True)]
        found[f"{name}_share_of_empty"] = round(median(ratios), 3)
    loop = await open_loop(
        port, PATHS["get_plan"], given.clients, given.rate, int(given.rate * given.seconds)
    )
    return {**found, "open_loop": asdict(loop)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000, help="of each client, in all rounds")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the open loop")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "registry.sqlite3", given.records)
        with served(folder) as port:
            found = asyncio.run(measured(port, given))
    print(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **found}))
    counted = json.dumps(found).count('"errors": 0')
    return 0 if counted == ROUNDS * len(PATHS) + 1 else 1


if __name__ == "__main__":
    sys.exit(main())
