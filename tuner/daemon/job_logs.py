"""Where jobs' logs lie: a folder for each registry, since each counts its own jobs."""

from __future__ import annotations

from pathlib import Path

from registry.digest import digest, short
from registry.location import FileLocation, locate
from tuner.config import Settings

LOGS_FOLDER = "jobs"


def logs_dir(settings: Settings) -> Path:
    location = locate(settings.registry)
    name = str(location.path.resolve()) if isinstance(location, FileLocation) else location.name
    return settings.data_dir / LOGS_FOLDER / short(digest(name))


def job_log(settings: Settings, job_id: int) -> Path:
    """What all runs of a job on this machine printed."""
    return logs_dir(settings) / f"{job_id}.log"
