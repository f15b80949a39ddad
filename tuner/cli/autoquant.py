"""`tuner autoquant`: the timings of layers and blocks that studies share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from registry.errors import InvalidInput
from tuner.cli.opening import opened, opened_alone
from tuner.cli.options import Decorator, gpu_option, json_option, registry_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from registry.timings import Kept, Places, StoredTiming
    from tuner.legacy_autoquant import LegacyCache

MAX_BYTES = 256 << 20
PICKLE_START = b"\x80"
LEGACY_NOTE = (
    "Its times name no GPU and no version: they guide a search on this hardware, and prove nothing."
)


@click.group("autoquant")
def command() -> None:
    """List, export or import the timings of layers and blocks: the autoquant cache.

    Studies on one GPU and one set of versions share them, so each layer is timed once.
    """


def hardware_option() -> Decorator[Any]:
    return click.option(
        "--hardware",
        metavar="TEXT",
        help="Only timings of devices with this in their name, or of the hardware whose digest "
        "begins with it.",
    )


@command.command("list")
@hardware_option()
@json_option()
@registry_option()
def list_timings(hardware: str | None, as_json: bool, registry_url: str | None) -> None:
    """Show how many timings there are for each device and set of versions."""
    from tuner.timing_groups import timing_groups

    groups = timing_groups(*_chosen(registry_url, hardware))
    if as_json:
        print_json(groups)
    elif not groups:
        click.echo("no timings")
    else:
        from tuner.report.timings import timings_table

        print_rich(timings_table(groups))


@command.command("export")
@click.argument("file", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@hardware_option()
@registry_option()
def export(file: str, hardware: str | None, registry_url: str | None) -> None:
    """Write timings to FILE as JSON, `-` for standard output."""
    from tuner.timing_file import dump_timings, timing_file

    found = timing_file(*_chosen(registry_url, hardware))
    with click.open_file(file, "w", encoding="utf-8", atomic=file != "-") as stream:
        stream.write(dump_timings(found))
    click.echo(f"{len(found.timings)} timings written", err=file == "-")


@command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--assume-this-machine",
    is_flag=True,
    help="For torchao's quantization-cache.pkl, which does not say where it was made: take its "
    "times as of this machine's hardware.",
)
@gpu_option()
@json_option()
@registry_option()
def import_timings(
    file: str, assume_this_machine: bool, gpu: str | None, as_json: bool, registry_url: str | None
) -> None:
    """Take timings from FILE: what `tuner autoquant export` wrote, or torchao's old cache.

    All of the file is checked first, and nothing is taken of one with a bad entry. A measured time
    replaces what was not measured, and a newer one an older. The pickle of torchao 0.3 to 0.16
    (`quantization-cache.pkl`) is read without running anything in it; its times name no GPU and no
    version, so they guide a search and prove nothing.
    """
    data = _read(file)
    if data.startswith(PICKLE_START):
        _import_legacy(data, gpu, as_json, registry_url, assumed=assume_this_machine)
        return
    if assume_this_machine or gpu is not None:
        raise InvalidInput(
            "--assume-this-machine and --gpu are for torchao's quantization-cache.pkl",
            hint="A file of `tuner autoquant export` says itself where it was made.",
        )
    _import_json(data, as_json, registry_url)


def _import_json(data: bytes, as_json: bool, registry_url: str | None) -> None:
    from tuner.clock import SystemClock
    from tuner.timing_file import parse_timings

    found = parse_timings(data, SystemClock().now())
    registry = opened_alone(registry_url, create=True)
    _print_kept(registry.merge_timings(found.timings, found.places), as_json)


def _import_legacy(
    data: bytes, gpu: str | None, as_json: bool, registry_url: str | None, *, assumed: bool
) -> None:
    from registry.timings import StoredTiming
    from tuner.clock import SystemClock
    from tuner.detect import detect
    from tuner.legacy_autoquant import LEGACY_RUNTIME, read_legacy_cache

    if not assumed:
        raise InvalidInput(
            "torchao's cache does not say on which GPU its times were taken",
            hint="If it was this machine's, say so with --assume-this-machine.",
        )
    hardware = detect(gpu).environment.hardware
    cache = read_legacy_cache(data, hardware)
    now = SystemClock().now()
    found = [StoredTiming(timing=timing, timed_at=now) for timing in cache.timings]
    kept = opened_alone(registry_url, create=True).merge_timings(found, (hardware, LEGACY_RUNTIME))
    _print_kept(kept, as_json, cache)


def _print_kept(kept: Kept, as_json: bool, cache: LegacyCache | None = None) -> None:
    left_out = {} if cache is None else _left_out(cache)
    if as_json:
        print_json({"new": kept.new, "better": kept.better, "same": kept.same, **left_out})
        return
    click.echo(f"{kept.new} new, {kept.better} better, {kept.same} already there")
    if cache is None:
        return
    for name, count in cache.unknown.items():
        click.echo(f"left out: {count} of {name}, which is no scheme of this program")
    if cache.malformed:
        click.echo(f"left out: {cache.malformed} malformed")
    if cache.untimed:
        click.echo(f"{cache.untimed} were never timed; kept as failed")
    click.echo(LEGACY_NOTE)


def _left_out(cache: LegacyCache) -> dict[str, Any]:
    return {
        "unknown_classes": cache.unknown,
        "malformed": cache.malformed,
        "untimed": cache.untimed,
        "proves_nothing": True,
    }


def _read(file: str) -> bytes:
    """Raises InvalidInput for a file that is larger than any of timings."""
    with click.open_file(file, "rb") as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{file} has more than {MAX_BYTES >> 20} MiB: it is no file of timings")
    return data


def _chosen(
    registry_url: str | None, hardware: str | None
) -> tuple[tuple[StoredTiming, ...], Places]:
    from tuner.timing_groups import of_hardware

    registry = opened(registry_url)
    found, places = registry.all_timings(), registry.timing_places()
    return (found if hardware is None else of_hardware(found, places, hardware)), places
