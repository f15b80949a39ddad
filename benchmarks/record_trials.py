"""Runs trials of many plans of a model, as `tuner run` would, and keeps each as a line of JSON.

    python benchmarks/record_trials.py --model tiny-flux --vram 2GB --resolution 64x64 --out t.jsonl

What is in the file is not run again, so a recording that was stopped goes on by the same command.
Each pair of size and batch is a workload of its own. Several GPUs of a machine share the work as
`--gpu 0 --shard 0/4`, `--gpu 1 --shard 1/4` and so on, into one file or several. `search.py`
replays such files, `model_error.py` prints how far predictions were off.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from benchmarks.recorder import Recorder
from benchmarks.recording import Asked, Place, recordings
from benchmarks.sampling import SLOW_EVERY
from registry.errors import InvalidInput, TunerError
from registry.record import Rung
from tuner.choices import Restriction
from tuner.cli import options
from tuner.cli.main import report
from tuner.clock import SystemClock, TimeLimit
from tuner.config import Settings, load_settings
from tuner.detect import Detection, detect
from tuner.locks import DeviceLock
from tuner.models import resolve_model
from tuner.runner import Runner
from tuner.standby import standby_pays
from tuner.workplace import refuse_a_device_in_use

TRIAL_LIMIT = "5m"
RUNGS: tuple[Rung, ...] = ("denoiser", "pipeline")


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" is the third of four. Raises InvalidInput."""
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise InvalidInput(f"{text!r} is not a shard", hint="Write I/N, with I from 0 to N-1.")


def parse_restriction(text: str) -> tuple[str, Any]:
    """ "schemes=none,int8_dynamic": a field of `Restriction` and what it leaves. Raises
    InvalidInput."""
    axis, equals, values = text.partition("=")
    kinds = {item.name: str(item.type) for item in fields(Restriction)}
    if axis not in kinds or not equals or not values:
        raise InvalidInput(
            f"{text!r} is not a restriction",
            hint=f"Write AXIS=VALUE,VALUE; axes: {', '.join(kinds)}.",
        )
    if not kinds[axis].startswith("bool"):
        return axis, frozenset(values.split(","))
    if values not in {"true", "false"}:
        raise InvalidInput(f"{values!r} is no value of {axis}", hint="Write true or false.")
    return axis, values == "true"


SHARD = options.Parsed("I/N", parse_shard)
RESTRICTION = options.Parsed("AXIS=VALUES", parse_restriction)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options.model_option()
@options.vram_option()
@options.host_memory_option()
@options.resolutions_option()
@options.batch_sizes_option()
@options.weights_option()
@options.revision_option()
@options.gpu_option()
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--rung", type=click.Choice(RUNGS), default="denoiser", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Of whole requests. [default: the model's]")
@click.option("--limit", type=click.IntRange(1), help="At most so many plans of each workload.")
@click.option(
    "--slow-every",
    type=click.IntRange(1),
    default=SLOW_EVERY,
    show_default=True,
    help="One plan in so many is one that compiles for long, while there are others.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of plans.")
@click.option("--shard", "part", type=SHARD, default="0/1", show_default=True)
@click.option("--time-limit", "time_limit_s", type=options.DURATION, help="Of all, from the start.")
@click.option(
    "--trial-limit",
    "trial_limit_s",
    type=options.DURATION,
    default=TRIAL_LIMIT,
    show_default=True,
    help="A trial that takes longer is kept as a failure.",
)
@click.option(
    "--restrict",
    "limits",
    type=RESTRICTION,
    multiple=True,
    help="Values that a choice is left, such as schemes=none,int8_dynamic; repeatable.",
)
@click.option(
    "--dominated", is_flag=True, help="Plans too that a search would drop as slower and no smaller."
)
@click.option(
    "--no-baseline",
    is_flag=True,
    help="Neither learn from a baseline first nor compare with its picture.",
)
@click.option(
    "--blocks",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Time blocks and layers after the baseline, as a study does, into this file.",
)
@click.option("--share", is_flag=True, help="Beside other processes on the device.")
@click.option(
    "--again-if-contaminated",
    is_flag=True,
    help="Run again what was measured beside foreign load; both lines stay, the clean one counts.",
)
@click.option("--list", "only_list", is_flag=True, help="Print what would be run, and leave.")
def command(**given: Any) -> int:
    """Record trials of a model's plans: see the top of this file and docs/benchmarks.md."""
    limits = dict(given.pop("limits"))
    return record(Asked(**given, restrict=Restriction(**limits)))


def record(asked: Asked) -> int:
    """0 where every trial that there was time for is in the file, well or not."""
    clock = SystemClock()
    time_limit = TimeLimit(clock, asked.time_limit_s)
    spec = resolve_model(asked.model, weights=asked.weights, revision=asked.revision)
    settings = load_settings()
    detection = detect(asked.gpu, settings=settings)
    refuse_a_device_in_use(detection, share=asked.share)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-record-")))
        lock = stack.enter_context(DeviceLock(detection.device_key, settings.locks_dir, sys.argv))
        runner = stack.enter_context(closing(_runner(detection, lock, folder, settings)))
        place = Place(spec, detection, runner, folder, time_limit, clock)
        return Recorder(asked, place).run(recordings(asked, place))


def _runner(detection: Detection, lock: DeviceLock, folder: Path, settings: Settings) -> Runner:
    """As `tuner run` has it: the next worker is started ahead on a GPU."""
    return Runner(
        sys.executable,
        detection,
        lock,
        folder / "trials",
        environ=settings.environ,
        ahead=standby_pays(detection),
    )


def main(arguments: Sequence[str]) -> int:
    try:
        code = command.main(list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TunerError as error:
        return report(error)
    except KeyboardInterrupt:
        click.echo("stopped; what is in the file stays", err=True)
        return 130
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
