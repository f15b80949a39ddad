"""`tuner serve`: the registry, and the answers of `tuner get-plan`, over HTTP."""

from __future__ import annotations

from typing import Any

import click

from registry.server.commands import needing_extra, run_service, serving_options
from tuner.cli.opening import opened_alone, settings_for
from tuner.cli.options import registry_option


@click.command("serve")
@serving_options()
@registry_option()
def command(registry_url: str | None, **options: Any) -> None:
    """Serve the registry over HTTP until SIGTERM or Ctrl-C, with the answers of get-plan.

    On this machine everybody may read; writing needs a token (`tuner tokens`). Any address beyond
    it needs TLS and at least one token, for reading too.
    """
    from tuner.version import __version__

    with needing_extra():
        from registry.server.memory import Fetches
        from registry.server.running import Service
        from tuner.serving import PlanRoutes

    settings = settings_for(registry_url)
    registry = opened_alone(registry_url, create=True)
    fetches = Fetches(registry)
    service = Service(
        registry=registry,
        fetches=fetches,
        config_dir=settings.config_dir,
        data_dir=settings.data_dir,
        version=__version__,
        more=(PlanRoutes(registry, settings, fetches).router(),),
    )
    run_service(service, options)
