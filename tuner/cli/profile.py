"""`tuner profile`: where the time of a plan's denoiser step goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tuner.cli.options import (
    BYTES,
    RESOLUTION,
    ModelName,
    gpu_option,
    json_option,
    registry_option,
    revision_option,
    weights_option,
)

OWN_OPTIONS = ("steps", "baseline", "trace_path", "share", "as_json")
"""Those that do not say what to profile."""


@click.command("profile")
@click.argument("record", required=False, metavar="[RECORD]")
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A plan's JSON file, or what `tuner get-plan` printed.",
)
@click.option(
    "--model",
    type=ModelName(),
    help="Catalog name, local diffusers folder or hub id.  [default: the record's]",
)
@click.option(
    "--vram",
    "budget_bytes",
    type=BYTES,
    help="Memory budget on the device.  [default: the record's, else all of it]",
)
@click.option(
    "--resolution",
    metavar="WIDTHxHEIGHT",
    type=RESOLUTION,
    help="Picture size as WIDTHxHEIGHT.  [default: the record's first, else the model's own]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pictures a request.",
)
@weights_option()
@revision_option()
@click.option(
    "--steps",
    type=click.IntRange(min=1, max=50),
    default=3,
    show_default=True,
    help="Denoiser steps to trace, after warm-up.",
)
@click.option("--baseline", is_flag=True, help="Profile the baseline too and compare the two.")
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the plan's trace to this file, for ui.perfetto.dev; compressed if it ends in .gz.",
)
@click.option("--share", is_flag=True, help="Profile beside other processes.")
@gpu_option()
@json_option()
@registry_option()
def command(**given: Any) -> None:
    """Show where the time of a denoiser step goes, and how far each part is from its floor.

    Profiles RECORD, or the plan of --plan, or the one that `tuner get-plan` answers for --model,
    --vram and --resolution. The trace is kept in the registry, with what was found, as a study of
    its own (`tuner history --studies`).
    """
    from tuner.cli.profiler import ProfileOptions, profile
    from tuner.cli.subjects import Question

    own = {name: given.pop(name) for name in OWN_OPTIONS}
    profile(Question(**given), ProfileOptions(**own))
