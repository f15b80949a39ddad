"""What most commands begin with: the settings and the registry they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.store import Registry
    from tuner.config import Settings


def settings_for(registry_url: str | None) -> Settings:
    """This user's settings, with the registry replaced by `--registry` where it was given."""
    from tuner.config import load_settings

    settings = load_settings()
    return settings if registry_url is None else replace(settings, registry=registry_url)


def opened(registry_url: str | None) -> Registry:
    """The registry of `--registry`, else of the settings, over its base. Nothing is made. Raises
    RegistryError."""
    from registry.client import open_registry

    settings = settings_for(registry_url)
    return open_registry(settings.registry, create=False, opening=settings.opening)


def opened_alone(registry_url: str | None, *, create: bool = False) -> Registry:
    """As `opened`, without a base: what is handed on is this registry's own. With `create` a new
    one is made where there is none yet."""
    from registry.client import open_registry

    settings = settings_for(registry_url)
    alone = replace(settings.opening, base=None)
    return open_registry(settings.registry, create=create, opening=alone)


def recorded_name(model: str) -> str:
    """How records call a model that was named on the command line: a folder by its own name."""
    from tuner import catalog

    path = Path(model).expanduser()
    is_folder = model not in catalog.names() and path.is_dir()
    return path.resolve().name if is_folder else model
