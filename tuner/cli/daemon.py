"""`tuner daemon`: work through the queue on one device."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.options import gpu_option, registry_option


@click.command("daemon")
@gpu_option()
@click.option("--once", is_flag=True, help="Work until nothing is left to do, then end: for cron.")
@click.option(
    "--log-format",
    "log_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="One line an event on standard error, for people or for programs.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration to use.  [default: config.toml in this user's own folder]",
)
@registry_option()
def command(
    gpu: str | None,
    once: bool,
    log_format: str,
    config_path: Path | None,
    registry_url: str | None,
) -> None:
    """Work through the queue of tuning jobs on one device, in the foreground.

    SIGTERM and Ctrl-C stop it within 15 seconds and hand its job back; SIGHUP reads the
    configuration again.
    """
    from registry.errors import InvalidInput
    from tuner.cli.opening import settings_for
    from tuner.clock import SystemClock
    from tuner.daemon import logs
    from tuner.daemon.config import CONFIG_FILE, load_config

    try:
        from tuner.daemon.daemon import Start, serve
    except ModuleNotFoundError as error:
        if error.name != "apscheduler":
            raise
        raise InvalidInput(
            "tuner daemon needs the package apscheduler, which is not installed",
            hint="pip install 'diffusion-tuner[daemon]'",
        ) from error
    settings = settings_for(registry_url)
    config = load_config(config_path or settings.config_dir / CONFIG_FILE)
    logs.set_up(log_format)
    serve(Start(settings, config.daemon, gpu, once, config_path), SystemClock())
