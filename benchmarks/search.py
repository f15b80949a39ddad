"""Replays recorded trials: how good a plan the search finds, and in which share of the time.

    python benchmarks/search.py trials.jsonl [more.jsonl] [--seeds 20] [--no-optuna]

Each search sees only recorded plans, so every proposal has an answer. Regret is how much slower a
request is with the plan found than with the best recorded one; time is that of all trials and
proofs, as a share of what trials of every plan and one proof take. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from benchmarks.block_timings import read_timings
from benchmarks.comparing import Comparison, ablate, compare, own_searches
from benchmarks.contenders import (
    PREDICTED,
    RANDOM,
    Contender,
    Tpe,
    load_optuna,
)
from benchmarks.recorded import read_all
from benchmarks.replay import Landscape, landscapes
from benchmarks.search_report import ablated_table, about, as_data, compared_table, error_text
from registry.errors import InvalidInput, TunerError
from tuner.cli import options
from tuner.cli.main import report
from tuner.cli.output import print_rich

SHARES = (0.1, 0.25, 0.5)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    default=SHARES,
    show_default=True,
    help="Of the exhaustive time, as a time limit; repeatable.",
)
@click.option(
    "--vram",
    "budgets",
    type=options.BYTES,
    multiple=True,
    help="Memory budget; repeatable.  [default: the one that was recorded within]",
)
@click.option(
    "--timings",
    "timing_paths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Timed blocks of this machine (`record_trials.py --blocks`, `tuner autoquant export`); "
    "repeatable.",
)
@click.option("--no-optuna", is_flag=True, help="Leave Optuna's TPE out.")
@click.option("--ablation-seeds", type=click.IntRange(1), default=8, show_default=True)
@click.option("--no-ablation", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
def command(
    paths: tuple[Path, ...],
    seeds: int,
    shares: tuple[float, ...],
    budgets: tuple[int, ...],
    timing_paths: tuple[Path, ...],
    no_optuna: bool,
    ablation_seeds: int,
    no_ablation: bool,
    as_json: bool,
) -> None:
    """Replay the recorded trials of PATHS."""
    others: tuple[Contender, ...] = (PREDICTED, RANDOM)
    if not no_optuna:
        load_optuna()
        others += (Tpe(),)
    timings = read_timings(timing_paths)
    tell = _nothing if as_json else print_rich
    compared: list[Comparison] = []
    ablated: list[Comparison] = []
    for space in spaces(paths, budgets):
        own = own_searches(space, timings)
        tell(about(space))
        for one in own:
            tell(f"  predicted steps, {one.name}: {error_text(space, one)}")
        compared.append(compare(space, (*own, *others), seeds, shares))
        tell(compared_table(compared[-1]))
        if not no_ablation:
            ablated.append(ablate(space, ablation_seeds))
            tell(ablated_table(ablated[-1]))
    if as_json:
        click.echo(json.dumps(as_data(compared, ablated), indent=2, ensure_ascii=False))


def _nothing(*_: object) -> None:
    """JSON comes in one piece."""


def spaces(paths: Sequence[Path], budgets: Sequence[int]) -> list[Landscape]:
    """Raises InvalidInput where nothing can be replayed."""
    items = read_all(paths)
    found = [space for budget in budgets or (None,) for space in landscapes(items, budget)]
    if not found:
        raise InvalidInput(
            "no file holds a baseline and trials of other plans",
            hint="Record them without --no-baseline.",
        )
    return found


def main(arguments: Sequence[str]) -> int:
    try:
        command.main(list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TunerError as error:
        return report(error)
    except ImportError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
