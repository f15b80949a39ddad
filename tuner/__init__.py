"""Find, prove and use the fastest plan for a diffusion model on one GPU.

    pipe = tuner.load("flux-dev", vram="24GB", height=1024, width=1024)

or, with a pipeline of one's own that still lies on the CPU:

    report = tuner.apply(pipe, tuner.get_plan("flux-dev", vram="24GB", height=1024, width=1024))

Importing this module imports neither torch nor SQLAlchemy: names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuner.version import __version__

if TYPE_CHECKING:
    from registry.errors import TunerError
    from registry.plan import Plan, parse_plan
    from tuner.answers import get_plan
    from tuner.app import LoadReport, apply, load

__all__ = [
    "LoadReport",
    "Plan",
    "TunerError",
    "__version__",
    "apply",
    "get_plan",
    "load",
    "parse_plan",
]

_HOMES = {
    "LoadReport": "tuner.app",
    "Plan": "registry.plan",
    "TunerError": "registry.errors",
    "apply": "tuner.app",
    "get_plan": "tuner.answers",
    "load": "tuner.app",
    "parse_plan": "registry.plan",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
