"""`tuner run`: find the fastest plan within a budget, prove it, publish it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tuner.cli.options import (
    DURATION,
    batch_sizes_option,
    gpu_option,
    host_memory_option,
    json_option,
    model_option,
    objective_option,
    policy_option,
    registry_option,
    resolutions_option,
    revision_option,
    vram_option,
    weights_option,
)

MAX_STEPS = 1000
"""What diffusion models are trained with; schedulers have no more."""
MAX_SEED = 2**63 - 1
"""What a torch generator takes."""


@click.command("run")
@model_option()
@vram_option()
@host_memory_option()
@resolutions_option()
@batch_sizes_option()
@click.option("--separate", is_flag=True, help="One plan for each size instead of one for all.")
@weights_option()
@revision_option()
@click.option(
    "--steps",
    type=click.IntRange(1, MAX_STEPS),
    help="Denoising steps.  [default: the model's own]",
)
@policy_option()
@objective_option()
@click.option(
    "--search",
    type=click.Choice(["anytime", "exhaustive"]),
    default="anytime",
    show_default=True,
    help="Stop early with the best proved so far, or measure every candidate.",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    type=DURATION,
    help="Publish the best proved by then, such as 8m or 1h30m; with --separate, of each size."
    "  [default: none]",
)
@click.option(
    "--audit",
    metavar="[N]",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=20,
    default=0,
    help="After publishing, try N candidates that were dropped unmeasured, and say which of them "
    "should not have been.  [default: 0; --audit alone: 20]",
)
@click.option(
    "--audit-limit",
    "audit_limit_s",
    type=DURATION,
    help="End the audit by then, counted from its own start.  [default: none]",
)
@click.option("--share", is_flag=True, help="Tune beside other processes; the figures are marked.")
@click.option(
    "--prompt", "prompts", multiple=True, help="Prompt to compare pictures on; repeatable."
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(0, MAX_SEED),
    help="Seed to compare pictures with; repeatable.",
)
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, executable=True, path_type=Path),
    help="Interpreter to measure with, such as the app's own.  [default: this one]",
)
@click.option(
    "--keep-logs", is_flag=True, help="Keep every trial's log, not only those of failures."
)
@gpu_option()
@json_option()
@registry_option()
def command(**given: Any) -> int:
    """Find the fastest plan for a model within a memory budget, prove it and publish it.

    Several --resolution and --batch-size are one workload: one plan that serves them all. A run
    that was stopped continues when the same command is given again.
    """
    from tuner.cli.tuning import RunOptions, tune

    return tune(RunOptions(**given))
