"""`tuner doctor`: what this machine is, what it can run, and what is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tuner.cli.opening import settings_for
from tuner.cli.options import gpu_option, json_option, registry_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuner.capabilities import Capability, Missing
    from tuner.config import Settings
    from tuner.detect import Detection

NEEDED = "accelerator"
"""The capability without which nothing can be tuned."""


@click.command("doctor")
@gpu_option()
@json_option()
@registry_option()
def command(gpu: str | None, as_json: bool, registry_url: str | None) -> int:
    """Show this machine, what is missing, and what it can and cannot run and why.

    Exit code 0 when `tuner run` can work here, 1 when something is in the way.
    """
    from tuner.capabilities import capabilities, missing
    from tuner.detect import detect

    settings = settings_for(registry_url)
    detection = detect(gpu, settings=settings)
    absent = missing(detection.environment)
    problems = (
        *detection.problems,
        *_unusable(detection),
        *_registry_problem(settings),
        *_folder_problems(settings),
    )
    healthy = not problems and not any(item.required for item in absent)
    report: dict[str, Any] = {
        "healthy": healthy,
        "environment": detection.environment,
        "gpu_uuid": detection.device_uuid,
        "foreign_bytes": detection.foreign_bytes,
        "problems": problems,
        "notes": detection.notes,
        "missing": absent,
        "capabilities": (*capabilities(detection.environment), _lpips(settings)),
        "registry": settings.registry,
    }
    if as_json:
        print_json(report)
    else:
        _print(detection, settings, problems, absent)
    return 0 if healthy else 1


def _lpips(settings: Settings) -> Capability:
    """The one score of pictures that needs weights."""
    from tuner.capabilities import Capability
    from tuner.installed import package_version
    from tuner.lpips import lacking

    reason = lacking(settings.torch_hub_dir, package_version("torchvision"))
    return Capability("LPIPS scores", reason is None, reason or "its weights are at hand")


def _unusable(detection: Detection) -> tuple[str, ...]:
    """A GPU that is too old; a machine without one is measured as a CPU device."""
    if detection.environment.hardware.device == "cpu":
        return ()
    from tuner.capabilities import capabilities

    found = capabilities(detection.environment)
    return tuple(item.reason for item in found if item.name == NEEDED and not item.available)


def _registry_problem(settings: Settings) -> tuple[str, ...]:
    """What hinders opening it, or its base; one that is not there yet is made by the first run."""
    from registry.client import open_registry
    from registry.errors import RegistryError, RegistryMissing

    try:
        found = open_registry(settings.registry, create=False, opening=settings.opening)
        if settings.opening.base is not None:
            found.studies(limit=1)  # has the base opened
    except RegistryMissing:
        return ()
    except RegistryError as error:
        return (str(error),)
    return found.notes


def _folder_problems(settings: Settings) -> Iterator[str]:
    """Folders that a run writes to and could not. They are made with their first file, so what is
    there of them is tried; permissions alone say little (root, full or read-only file systems)."""
    from tempfile import TemporaryDirectory

    from tuner.config import HOME_VARIABLE

    for folder in (settings.data_dir, settings.cache_dir, settings.config_dir):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            TemporaryDirectory(dir=there).cleanup()
        except OSError as error:
            reason = error.strerror or str(error)
            yield f"{folder} cannot be written ({reason}): {HOME_VARIABLE} names another place"


def _print(
    detection: Detection,
    settings: Settings,
    problems: tuple[str, ...],
    absent: tuple[Missing, ...],
) -> None:
    from tuner.capabilities import capabilities
    from tuner.report import machine

    print_rich(
        machine.hardware_facts(detection.environment.hardware, detection.foreign_bytes),
        machine.runtime_facts(detection.environment.runtime),
        machine.place_facts(settings.registry, str(settings.cache_dir)),
        machine.capabilities_table((*capabilities(detection.environment), _lpips(settings))),
        *machine.findings(problems, detection.notes, absent),
    )
