"""`python -m benchmarks.quality`."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.quality.pairs import SETS, SetName, write_pairs

PICTURES = Path(__file__).resolve().parents[2] / "docs/pictures"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure what the quality gate's thresholds rest on."""


@command.command()
@click.argument("name", type=click.Choice(SETS))
@click.option("--only", multiple=True, help="A treatment; all without it. Repeatable.")
def collect(name: SetName, only: tuple[str, ...]) -> None:
    """Draw what is missing of one set. About 15 minutes a set on one core."""
    from benchmarks.quality.collect import collect as run

    write_pairs()
    run(name, only)


@command.command()
def thresholds() -> None:
    """Print what the rule makes of the calibration set, and the verdicts on the held-out one."""
    from benchmarks.quality.scores import results
    from benchmarks.quality.thresholds import rules, rules_text, verdicts, verdicts_text

    held_out = results("held-out")
    click.echo(rules_text(rules(results("calibration"))))
    click.echo(f"\n{verdicts_text(verdicts(held_out), held_out)}")


@command.command()
def caches() -> None:
    """Time step caches, and print that beside the verdicts on the held-out set."""
    from benchmarks.quality.caches import caches_text, speeds
    from benchmarks.quality.scores import results

    click.echo(caches_text(list(speeds()), results("held-out")))


@command.command()
def plots() -> None:
    """Draw the held-out distributions. Needs the extra [bench]."""
    from benchmarks.quality.plots import plot
    from benchmarks.quality.scores import results

    plot(results("held-out"), PICTURES / "quality.png")


@command.command()
def grids() -> None:
    """Draw pictures side by side, and print each row's prompt fidelity."""
    from benchmarks.quality.grids import save_pictures

    click.echo("\n".join(save_pictures(PICTURES / "quality-grid.png")))


if __name__ == "__main__":
    command()
