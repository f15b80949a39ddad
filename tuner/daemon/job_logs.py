"""Where jobs' logs lie: a folder for each registry, since each counts its own jobs."""

from __future__ import annotations

from pathlib import Path

from registry.client import database_path
from registry.digest import digest, short
from tuner.config import Settings

LOGS_FOLDER = "jobs"


def logs_dir(settings: Settings) -> Path:
    registry = digest(str(database_path(settings.registry).resolve()))
    return settings.data_dir / LOGS_FOLDER / short(registry)


def job_log(settings: Settings, job_id: int) -> Path:
    """What all runs of a job on this machine printed."""
    return logs_dir(settings) / f"{job_id}.log"
