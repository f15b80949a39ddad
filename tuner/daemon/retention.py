"""What the daemon removes: logs of jobs that ended, and artifacts and trials that no plan needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from registry.errors import RegistryError
from registry.jobs import OPEN
from registry.quotas import Quota
from registry.store import Registry
from tuner.clock import Clock
from tuner.daemon.config import RetentionConfig
from tuner.daemon.logs import say, warn


@dataclass(frozen=True)
class Log:
    path: Path
    size_bytes: int
    written_at_s: float


class Retention:
    """`logs_dir` holds `<job>.log`. An open job keeps its log, a plan in service what it needs."""

    def __init__(
        self,
        registry: Registry,
        logs_dir: Path,
        config: Callable[[], RetentionConfig],
        clock: Clock,
    ) -> None:
        self._registry, self._logs_dir = registry, logs_dir
        self._config, self._clock = config, clock

    def tidy(self) -> None:
        """One tick. What cannot be done now is said, and done at the next."""
        try:
            logs_bytes = self._remove_logs()
            trimmed = self._registry.trim(self._quota())
            grace = timedelta(seconds=self._config().garbage_age)
            garbage = self._registry.collect_garbage(now=self._clock.now(), grace=grace)
        except (RegistryError, OSError) as error:
            warn("not tidied", why=str(error))
            return
        if logs_bytes or garbage.files or trimmed.trials:
            freed = {"logs_bytes": logs_bytes, "artifacts_bytes": garbage.freed_bytes}
            say("tidied", **freed, trials=trimmed.trials)

    def _quota(self) -> Quota:
        config = self._config()
        unused_since = self._clock.now() - timedelta(seconds=config.unused_age)
        return Quota(config.artifacts, config.trials, unused_since)

    def _remove_logs(self) -> int:
        """Freed bytes."""
        freed_bytes = 0
        for log in self._superfluous():
            log.path.unlink(missing_ok=True)
            freed_bytes += log.size_bytes
        return freed_bytes

    def _superfluous(self) -> Iterator[Log]:
        config, now_s = self._config(), self._clock.now().timestamp()
        open_jobs = {str(job.id) for job in self._registry.jobs.list(statuses=OPEN, limit=10**6)}
        kept_bytes = 0.0
        for log in sorted(self._logs(), key=lambda log: log.written_at_s, reverse=True):
            kept_bytes += log.size_bytes
            too_much = kept_bytes > config.logs or now_s - log.written_at_s > config.logs_age
            if too_much and log.path.stem not in open_jobs:
                yield log

    def _logs(self) -> Iterator[Log]:
        for path in self._logs_dir.glob("*.log"):
            with suppress(FileNotFoundError):  # another device's daemon removes them too
                status = path.stat()
                yield Log(path, status.st_size, status.st_mtime)
