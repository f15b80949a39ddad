"""Freeze a registry as this release writes it: run once for a release that changed the schema.

    python -m tests.registry.data.make_frozen

A frozen file is never made again: it is what users of that release have.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

from registry.client import open_registry
from registry.schema import SCHEMA_HEAD
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd
from tests.registry import samples
from tests.registry.children import PYSQLITE3


def main() -> None:
    target = Path(__file__).parent / f"registry-{SCHEMA_HEAD}.sqlite3.gz"
    if target.exists():
        sys.exit(f"{target} is frozen already")
    sys.modules[PYSQLITE3] = None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry.sqlite3"
        fill(open_registry(path), SigningKeys(Path(folder) / "keys"))
        target.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def fill(registry: Registry, keys: SigningKeys) -> None:
    study = registry.begin_study(
        "identity", model=samples.MODEL, workload=samples.WORKLOAD,
        environment=samples.ENVIRONMENT, request={"vram": "2GB"}, now=samples.NOW,
    )  # fmt: skip
    log = registry.put_artifact("log", b"said the worker")
    cache = registry.put_artifact("compile_cache", b"compiled")
    registry.add_trial(study.id, samples.trial(log=log))
    registry.put_inventory("key", samples.inventory(), samples.NOW)
    registry.put_timings([samples.timing()], now=samples.NOW, environment=samples.ENVIRONMENT)
    registry.publish([samples.record(study=study.id)], now=samples.NOW, keys=keys)
    newer = samples.record(study=study.id, minutes=1, artifacts=(cache,))
    end = StudyEnd(study.id, "finished", {"best": 1.5})
    registry.publish([newer], now=samples.later(1), keys=keys, end=end)
    registry.note_fetch(newer.id, samples.later(2))
    registry.jobs.enqueue(samples.job(), priority=1, now=samples.NOW)


if __name__ == "__main__":
    main()
