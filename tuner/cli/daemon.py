"""`tuner daemon`: work through the queue on one device, or have systemd start that."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tuner.cli.options import gpu_option, registry_option

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration to use.  [default: config.toml in this user's own folder]",
)


@click.group("daemon", invoke_without_command=True)
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
@CONFIG_OPTION
@registry_option()
@click.pass_context
def command(
    context: click.Context,
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
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    from registry.errors import InvalidInput
    from tuner.cli.opening import settings_for
    from tuner.clock import SystemClock
    from tuner.daemon import logs
    from tuner.daemon.config import CONFIG_FILE, load_config

    try:
        from tuner.daemon.daemon import Start, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apscheduler":
            raise
        raise InvalidInput(
            "tuner daemon needs the package apscheduler, which is not installed",
            hint="pip install 'diffusion-tuner[daemon]'",
        ) from error
    settings = settings_for(registry_url)
    config = load_config(
        config_path or settings.config_dir / CONFIG_FILE, must_exist=config_path is not None
    )
    logs.set_up(log_format)
    serve(Start(settings, config, gpu, once, config_path), SystemClock())


def refuse_misplaced(context: click.Context) -> None:
    """An option before the subcommand would be lost. Raises click.UsageError."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} belongs after `{context.invoked_subcommand}`"
            )


@command.command("install")
@gpu_option()
@CONFIG_OPTION
@registry_option()
@click.option(
    "--system", "is_system", is_flag=True, help="For the whole machine, not this user alone."
)
@click.option("--print", "print_only", is_flag=True, help="Print the unit; write nothing.")
def install(
    gpu: str | None,
    config_path: Path | None,
    registry_url: str | None,
    is_system: bool,
    print_only: bool,
) -> None:
    """Write the systemd unit that runs this daemon, and say how to start it.

    The unit names this interpreter and these options. Nothing is started or enabled.
    """
    from registry.location import locate
    from tuner.cli.opening import settings_for
    from tuner.daemon.unit import Unit

    settings = settings_for(registry_url)
    registry = locate(settings.registry)
    given = {
        "--gpu": gpu,
        "--registry": None if registry_url is None else registry.address,
        "--config": None if config_path is None else str(config_path.absolute()),
    }
    words = [word for name, value in given.items() if value is not None for word in (name, value)]
    folders = (settings.data_dir, settings.cache_dir, *registry.folders, settings.hub_cache_dir)
    unit = Unit(
        python=sys.executable,
        arguments=(*words, "--log-format", "json"),
        environ=settings.environ,
        writable=tuple(dict.fromkeys(folders)),
        is_system=is_system,
    )
    if print_only:
        click.echo(unit.text(), nl=False)
        return
    _write(unit.text(), gpu, is_system=is_system)
    for folder in unit.writable:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(text: str, gpu: str | None, *, is_system: bool) -> None:
    import re

    system, own = Path("/etc/systemd/system"), Path("~/.config/systemd/user").expanduser()
    suffix = "" if gpu is None else "-" + re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    path = (system if is_system else own) / f"diffusion-tuner{suffix}.service"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    manager = "systemctl" if is_system else "systemctl --user"
    click.echo(f"wrote {path}")
    click.echo(f"start it with: {manager} daemon-reload && {manager} enable --now {path.name}")
