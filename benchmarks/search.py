"""Replays recorded trials: how good a plan the search finds, and in which share of the time.

    python benchmarks/search.py trials.jsonl [more.jsonl] [--seeds 20] [--no-optuna]

Each search sees only recorded plans, so every proposal has an answer. Regret is how much slower a
request is with the plan found than with the best recorded one; time is that of all trials and
proofs, as a share of what trials of every plan and one proof take. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
from rich.table import Table

from benchmarks.ablations import ABLATIONS
from benchmarks.contenders import (
    PREDICTED,
    RANDOM,
    Contender,
    Result,
    Tpe,
    TunerSearch,
    load_optuna,
)
from benchmarks.recorded import read_all
from benchmarks.replay import Landscape, landscapes
from registry.errors import InvalidInput, TunerError
from tuner.cli import options
from tuner.cli.main import report
from tuner.cli.output import print_rich
from tuner.labels import describe
from tuner.report.tables import table
from tuner.units import format_bytes, format_seconds

GOOD_REGRET = 0.02
SHARES = (0.1, 0.25, 0.5)
ABLATED_SHARE = 0.25


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
@click.option("--no-optuna", is_flag=True, help="Leave Optuna's TPE out.")
@click.option("--no-ablation", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
def command(
    paths: tuple[Path, ...],
    seeds: int,
    shares: tuple[float, ...],
    budgets: tuple[int, ...],
    no_optuna: bool,
    no_ablation: bool,
    as_json: bool,
) -> None:
    """Replay the recorded trials of PATHS."""
    contenders: tuple[Contender, ...] = (TunerSearch(), PREDICTED, RANDOM)
    if not no_optuna:
        load_optuna()
        contenders += (Tpe(),)
    found = spaces(paths, budgets)
    compared = [compare(item, contenders, seeds, shares) for item in found]
    ablated = [] if no_ablation else [ablate(item, seeds) for item in found]
    if as_json:
        click.echo(json.dumps(as_data(compared, ablated), indent=2, ensure_ascii=False))
        return
    for item in found:
        click.echo(about(item))
    print_rich(*(compared_table(part) for part in compared))
    print_rich(*(ablated_table(part) for part in ablated))


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


@dataclass(frozen=True)
class Row:
    """One contender under one time limit, over all seeds. `limit` None is where the project's
    search stops by itself; the others are then given as much. Infinite is no answer."""

    name: str
    limit: float | None
    regrets: tuple[float, ...]
    shares: tuple[float, ...]
    trials: tuple[int, ...]
    proofs: tuple[int, ...]
    proved: float

    @property
    def good(self) -> float:
        """Share of the seeds with a regret that is small enough."""
        return sum(value <= GOOD_REGRET for value in self.regrets) / len(self.regrets)


@dataclass(frozen=True)
class Comparison:
    landscape: Landscape
    rows: tuple[Row, ...]


def compare(
    landscape: Landscape,
    contenders: Sequence[Contender],
    seeds: int,
    shares: Sequence[float],
) -> Comparison:
    """Every contender with the time that the first takes by itself, and within each share."""
    first = [contenders[0].run(landscape, seed, None) for seed in range(seeds)]
    own_s = [result.time_s for result in first]
    rows = [_row(landscape, contenders[0].name, None, first)]
    rows += [_runs(landscape, item, None, own_s) for item in contenders[1:]]
    for share in shares:
        limits_s = [share * landscape.exhaustive_s] * seeds
        rows += [_runs(landscape, item, share, limits_s) for item in contenders]
    return Comparison(landscape, tuple(rows))


def ablate(landscape: Landscape, seeds: int) -> Comparison:
    """The search whole, then without each of its parts: to its own end, and within a share."""
    limits_s = [ABLATED_SHARE * landscape.exhaustive_s] * seeds
    rows: list[Row] = []
    for item in (TunerSearch("nothing"), *ABLATIONS):
        ended = [item.run(landscape, seed, None) for seed in range(seeds)]
        rows.append(_row(landscape, item.name, None, ended))
        rows.append(_runs(landscape, item, ABLATED_SHARE, limits_s))
    return Comparison(landscape, tuple(rows))


def _runs(
    landscape: Landscape, contender: Contender, limit: float | None, limits_s: Sequence[float]
) -> Row:
    results = [contender.run(landscape, seed, limit_s) for seed, limit_s in enumerate(limits_s)]
    return _row(landscape, contender.name, limit, results)


def _row(landscape: Landscape, name: str, limit: float | None, results: Sequence[Result]) -> Row:
    return Row(
        name=name,
        limit=limit,
        regrets=tuple(landscape.regret(item.plan) for item in results),
        shares=tuple(item.time_s / landscape.exhaustive_s for item in results),
        trials=tuple(item.trials for item in results),
        proofs=tuple(item.proofs for item in results),
        proved=sum(item.proved for item in results) / len(results),
    )


def about(landscape: Landscape) -> str:
    """What was recorded, in a few lines."""
    items = landscape.by_plan.values()
    failed = sum(item.trial.measurement is None for item in items)
    contaminated = sum(item.is_contaminated for item in items)
    best = describe(landscape.best_plan)
    return (
        f"{landscape.name}, within {format_bytes(landscape.budget_bytes)}: {len(items)} plans "
        f"({failed} failed, {contaminated} measured beside foreign load); all of them take "
        f"{format_seconds(landscape.exhaustive_s)}; best {best} at "
        f"{format_seconds(landscape.best_s)} a request"
    )


def compared_table(part: Comparison) -> Table:
    columns = ("Time limit", "Search", ">Median", ">Worst", ">≤2%", ">Proved", ">Trials")
    rows = ((limit_text(row.limit), row.name, *_cells(row)) for row in part.rows)
    return table(*columns, ">Proofs", ">Time", title=_title(part, "Regret"), rows=rows)


def ablated_table(part: Comparison) -> Table:
    """A row for each part left out. It changes nothing where every figure is that of the whole."""
    whole = part.rows[:2]
    pairs = zip(part.rows[::2], part.rows[1::2], strict=True)
    rows = (
        (
            ended.name,
            *_cells(ended),
            *_cells(limited)[:4],
            "" if (ended, limited) == whole or not _same(whole, (ended, limited)) else "nothing",
        )
        for ended, limited in pairs
    )
    figures = (">Median", ">Worst", ">≤2%", ">Proved")
    more = (">Trials", ">Proofs", ">Time")
    limited = tuple(f"{name} in {ABLATED_SHARE:.0%}" for name in figures)
    title = _title(part, "Regret without")
    return table("Without", *figures, *more, *limited, "Changes", title=title, rows=rows)


def _same(whole: Sequence[Row], other: Sequence[Row]) -> bool:
    def figures(rows: Iterable[Row]) -> list[Any]:
        return [(row.regrets, row.shares, row.trials, row.proofs) for row in rows]

    return figures(whole) == figures(other)


def _title(part: Comparison, what: str) -> str:
    landscape = part.landscape
    return f"{what}: {landscape.name} within {format_bytes(landscape.budget_bytes)}"


def limit_text(limit: float | None) -> str:
    return "own end" if limit is None else f"{limit:.0%}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        regret_text(median(row.regrets)),
        regret_text(max(row.regrets)),
        f"{row.good:.0%}",
        f"{row.proved:.0%}",
        f"{median(row.trials):g}",
        f"{median(row.proofs):g}",
        f"{median(row.shares):.0%}",
    )


def regret_text(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.1%}"


def as_data(
    compared: Iterable[Comparison], ablated: Iterable[Comparison]
) -> dict[str, list[dict[str, Any]]]:
    """JSON types; a regret is null where there was no answer."""
    return {
        "compared": [row for part in compared for row in _data(part)],
        "ablated": [row for part in ablated for row in _data(part)],
    }


def _data(part: Comparison) -> Iterator[dict[str, Any]]:
    landscape = part.landscape
    for row in part.rows:
        regrets = [None if math.isinf(value) else value for value in row.regrets]
        yield {
            "landscape": landscape.name,
            "budget_bytes": landscape.budget_bytes,
            **asdict(row),
            "regrets": regrets,
        }


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
