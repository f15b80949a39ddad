"""`tuner run`: find the fastest plan within a budget, prove it, publish it."""

from __future__ import annotations

from typing import Any

import click

from tuner.cli.options import (
    DURATION,
    gpu_option,
    json_option,
    objective_option,
    policy_option,
    python_option,
    question_options,
    registry_option,
    steps_option,
    time_limit_option,
)

MAX_SEED = 2**63 - 1
"""What a torch generator takes."""


@click.command("run")
@question_options()
@click.option("--separate", is_flag=True, help="One plan for each size instead of one for all.")
@steps_option()
@policy_option()
@objective_option()
@click.option(
    "--search",
    type=click.Choice(["anytime", "exhaustive"]),
    default="anytime",
    show_default=True,
    help="Stop early with the best proved so far, or measure every candidate.",
)
@time_limit_option("; with --separate, of each size")
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
@click.option(
    "--step-cache/--no-step-cache",
    default=True,
    show_default=True,
    help="Also try plans that do not compute every denoising step, where the policy admits them "
    "and weights are trained.",
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
@python_option("Interpreter to measure with, such as the app's own.  [default: this one]")
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
