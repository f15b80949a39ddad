"""`tuner daemon`: one process a device, from its lock to its last word."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from registry.client import open_registry
from registry.errors import DeviceBusy, InvalidInput, RegistryError
from tuner.clock import Clock
from tuner.config import Settings
from tuner.daemon.config import CONFIG_FILE, Config, load_config
from tuner.daemon.describe import describe
from tuner.daemon.job_logs import logs_dir
from tuner.daemon.logs import say, warn
from tuner.daemon.manners import IdleGate, Manners, gpu_monitor
from tuner.daemon.notify import Notifier
from tuner.daemon.retention import Retention
from tuner.daemon.service import Post, Service
from tuner.daemon.ticks import SILENCE, Every, Ticks
from tuner.daemon.watcher import Watcher
from tuner.detect import CPU, Detection, detect
from tuner.locks import daemon_lock
from tuner.matching import device_kind
from tuner.nvml import Nvml, open_nvml
from tuner.signals import handling

STEP, DRIFT, TIDY, STOP, RELOAD = "step", "drift", "tidy", "stop", "reload"
SICK_S = 60.0
"""Without going round for this long, the loop is not well; a busy registry holds it for half."""


@dataclass(frozen=True)
class Start:
    """How a daemon is started: `gpu` as in `--gpu`; `once` works until nothing is left to do.
    `config_path` is what a reload reads, None the user's own file."""

    settings: Settings
    config: Config
    gpu: str | None = None
    once: bool = False
    config_path: Path | None = None


def serve(start: Start, clock: Clock, *, nvml: Callable[[], Nvml] = open_nvml) -> None:
    """Returns when it was stopped, its job handed back; with `once` when nothing is left.

    Raises DeviceBusy at once where another daemon serves the device, InvalidInput and DeviceError
    for one that is not there, RegistryError where there is no registry to work with at the start.
    """
    detection = detect(start.gpu, nvml=nvml, settings=start.settings)
    with alone_on(detection, start.settings):
        registry = open_registry(start.settings.registry, opening=start.settings.opening)
        registry.require_writable()
        post = Post(
            settings=start.settings,
            registry=registry,
            gpu=detection.device_uuid or CPU,
            device_key=detection.device_key,
            kind=device_kind(detection.environment.hardware),
        )
        Daemon(start, post, clock, nvml).run()


@contextmanager
def alone_on(detection: Detection, settings: Settings) -> Iterator[None]:
    """One daemon a device. Apart from the device's own lock, which a job holds while it runs, so
    that `tuner run` gets its turn between jobs. Raises DeviceBusy naming the other."""
    lock = daemon_lock(detection.device_key, settings.locks_dir, (sys.executable, *sys.argv))
    try:
        lock.acquire(patience_s=1.0)
    except DeviceBusy as error:
        holder = lock.holder()
        alive = holder is not None and psutil.pid_exists(holder.pid)
        by = f": process {holder.pid}" if holder is not None and alive else ""
        raise DeviceBusy(
            f"another daemon serves {detection.device_key}{by}",
            hint="`tuner status` shows what it does; --gpu chooses another device.",
        ) from error
    with lock:
        yield


class Daemon:
    """The loop around a service."""

    def __init__(
        self, start: Start, post: Post, clock: Clock, nvml: Callable[[], Nvml] = open_nvml
    ) -> None:
        self._start, self._post, self._clock, self._nvml = start, post, clock, nvml
        self._config = start.config.daemon
        self._notifier = Notifier(start.settings.environ)
        self._went_round_s = clock.monotonic_s()
        self._retention_config = start.config.retention
        self._watcher = self._made_watcher()
        self._retention = Retention(
            post.registry,
            logs_dir(start.settings),
            lambda: self._retention_config,
            clock,
        )
        every_s = intervals_s(start.config)
        self._ticks = Ticks(
            {
                STEP: Every(every_s[STEP], lambda: self._ticks.post(STEP)),
                DRIFT: Every(every_s[DRIFT], self._watcher.look, at_once=True),
                TIDY: Every(every_s[TIDY], self._retention.tidy, at_once=True),
            }
        )
        self._service = Service(
            post,
            self._config,
            clock,
            closed=self._closed,
            wake=lambda: self._ticks.post(STEP),
        )
        self._manners = self._made_manners()

    def run(self) -> None:
        names = {signal.SIGTERM: STOP, signal.SIGINT: STOP, signal.SIGHUP: RELOAD}
        with handling({number: partial(self._hear, name) for number, name in names.items()}):
            try:
                if self._start.once:
                    self._work_off()
                else:
                    self._loop()
            finally:
                self._notifier.stopping()
                self._watcher.end()
                self._service.stop("the daemon was stopped")
                say("daemon stopped", device=self._post.device_key)

    def _hear(self, name: str) -> None:
        """Of a signal, in its handler: the loop acts in its own time, but a look of the watcher may
        be under way in this very thread."""
        if name == STOP:
            self._watcher.end()
        self._ticks.post(name)

    def _loop(self) -> None:
        with self._monitored(), self._ticks:
            say("daemon ready", device=self._post.device_key, registry=self._post.settings.registry)
            self._notifier.ready(f"serves {self._post.device_key}")
            while STOP not in (names := self._ticks.wait(SILENCE * self._config.step)):
                if not names:
                    warn("no tick: the clock was set, or the machine slept")
                    self._ticks.begin_anew()
                if RELOAD in names:
                    self._reload()
                self._service.step()
                self._went_round_s = self._clock.monotonic_s()
                self._notifier.alive()

    def _work_off(self) -> None:
        """Until nothing is left. For a device in use, or a registry that cannot be used, no longer
        than it takes to know that, counted from the last moment when there was something to do."""
        self._watcher.look()
        patience_s = self._config.idle.window + 3 * self._config.step
        busy_s = self._clock.monotonic_s()
        while STOP not in self._ticks.wait(0 if self._service.working is None else 0.1):
            if self._service.step():
                busy_s = self._clock.monotonic_s()
            elif self._is_at_an_end(busy_s + patience_s) or STOP in self._ticks.wait(
                self._config.step
            ):
                return

    def _is_at_an_end(self, give_up_s: float) -> bool:
        """Raises RegistryError where that is what keeps it from working."""
        trouble, why = self._service.trouble, self._service.why_closed
        if (trouble or why) and self._clock.monotonic_s() <= give_up_s:
            return False
        if trouble is not None:
            raise RegistryError(trouble)
        say("nothing left to do", why=why or "no job is waiting")
        return True

    def _reload(self) -> None:
        """What is wrong with the file is said, and what was in force stays so."""
        self._notifier.reloading(int(self._clock.monotonic_s() * 1e6))
        path = self._start.config_path or self._start.settings.config_dir / CONFIG_FILE
        try:
            self._take_over(load_config(path, must_exist=self._start.config_path is not None))
            say("configuration read", path=str(path))
        except InvalidInput as error:
            warn("configuration refused; the one before stays", why=error.message)
        self._notifier.ready(f"serves {self._post.device_key}")

    def _take_over(self, config: Config) -> None:
        """All but the port, which stays open where monitors look for it."""
        if config.daemon.port != self._config.port:
            warn("another port takes a new start of the daemon", port=config.daemon.port)
        port = self._config.port
        self._config = config.daemon.model_copy(update={"port": port})
        self._retention_config = config.retention
        self._service.config = self._config
        self._manners = self._made_manners()
        self._ticks.change(intervals_s(config))

    def _monitored(self) -> AbstractContextManager[object]:
        if self._config.port is None:
            return nullcontext()
        from tuner.daemon.web import Health, served

        health = Health(
            self._post.registry,
            lambda: self._clock.monotonic_s() - self._went_round_s,
            lambda: self._service.working is not None,
            SICK_S,
        )
        return served(health, self._config.port)

    def _closed(self, working: bool) -> str | None:
        return self._manners.closed(working)

    def _made_watcher(self) -> Watcher:
        environ, gpu = self._start.settings.environ, self._post.gpu
        return Watcher(
            self._post.registry,
            lambda python: describe(python, gpu, environ),
            lambda: self._config.interpreters,
            self._post.kind,
            self._clock,
        )

    def _made_manners(self) -> Manners:
        gate = None
        if self._post.gpu != CPU:
            monitor = gpu_monitor(self._nvml, self._post.gpu)
            gate = IdleGate(self._config.idle, monitor, self._clock.monotonic_s)
        return Manners(self._config.quiet_hours, gate, lambda: self._clock.now().astimezone())


def intervals_s(config: Config) -> dict[str, float]:
    """How often each tick comes."""
    daemon, retention = config.daemon, config.retention
    return {STEP: daemon.step, DRIFT: daemon.drift, TIDY: retention.every}
