"""Options that several commands share, with their parsing and shell completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click
from click.shell_completion import CompletionItem
from typing_extensions import override

from registry.errors import InvalidInput
from tuner.shapes import MAX_BATCH_SIZE
from tuner.units import parse_bytes, parse_duration_s, parse_resolution

Value = TypeVar("Value")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType


class Parsed(ParamType, Generic[Value]):
    """A parameter read by one of our parsers; its refusal names the option and the value."""

    def __init__(self, name: str, parse: Callable[[str], Value]) -> None:
        self.name = name
        self._parse = parse

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Value | Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InvalidInput as error:
            self.fail(f"{error.message}. {error.hint or ''}".strip(), param, ctx)


class ModelName(ParamType):
    """A catalog name, a local diffusers folder or a hub id; names of the catalog complete."""

    name = "model"

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from tuner import catalog

        names = [name for name in catalog.names() if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


BYTES = Parsed("amount", parse_bytes)
RESOLUTION = Parsed("resolution", parse_resolution)
DURATION = Parsed("duration", parse_duration_s)


def registry_option() -> Decorator[Any]:
    return click.option(
        "--registry",
        "registry_url",
        metavar="URL",
        help="Registry to use: a folder, a file or a URL.  [default: $TUNER_REGISTRY, else this "
        "user's own]",
    )


def json_option() -> Decorator[Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def gpu_option() -> Decorator[Any]:
    return click.option(
        "--gpu",
        metavar="GPU",
        help="Index, UUID or MIG UUID of the GPU, or `cpu`.  [default: the first]",
    )


def model_option(*, required: bool = True) -> Decorator[Any]:
    return click.option(
        "--model",
        required=required,
        type=ModelName(),
        help="Catalog name (see `tuner models`), local diffusers folder or hub id.",
    )


def vram_option() -> Decorator[Any]:
    return click.option(
        "--vram",
        "budget_bytes",
        required=True,
        type=BYTES,
        help="Memory budget on the device, such as 24GB (10⁹) or 22GiB (2³⁰).",
    )


def host_memory_option() -> Decorator[Any]:
    return click.option(
        "--host-memory",
        "host_budget_bytes",
        type=BYTES,
        help="Memory budget on the host, offloaded and pinned weights included.",
    )


def resolutions_option() -> Decorator[Any]:
    return click.option(
        "--resolution",
        "resolutions",
        metavar="WIDTHxHEIGHT",
        multiple=True,
        type=RESOLUTION,
        help="Picture size as WIDTHxHEIGHT; repeat it for every size served.  [default: the "
        "model's own]",
    )


def batch_sizes_option() -> Decorator[Any]:
    return click.option(
        "--batch-size",
        "batch_sizes",
        multiple=True,
        type=click.IntRange(1, MAX_BATCH_SIZE),
        default=(1,),
        help="Pictures a request; repeat it for every size served.  [default: 1]",
    )


def policy_option() -> Decorator[Any]:
    return click.option(
        "--policy",
        type=click.Choice(["strict", "balanced", "fast"]),
        default="balanced",
        show_default=True,
        help="How close to the unquantized picture a plan must stay.",
    )


def objective_option() -> Decorator[Any]:
    return click.option(
        "--objective",
        type=click.Choice(["latency", "throughput", "first-image"]),
        default="latency",
        show_default=True,
        help="What shall be short: a request, the time per picture, or the wait for the first one.",
    )


def weights_option() -> Decorator[Any]:
    return click.option(
        "--weights",
        type=click.Choice(["pretrained", "random"]),
        default="pretrained",
        show_default=True,
        help="`random` needs no download: the full architecture with seeded random weights.",
    )


def revision_option() -> Decorator[Any]:
    return click.option("--revision", help="Branch, tag or commit of a hub model.")


MAX_STEPS = 1000
"""What diffusion models are trained with; schedulers have no more."""


def question_options() -> Decorator[Any]:
    """Model, budgets and sizes: what every search is asked."""
    parts = (
        model_option(),
        vram_option(),
        host_memory_option(),
        resolutions_option(),
        batch_sizes_option(),
        weights_option(),
        revision_option(),
    )

    def decorate(command: Decorated) -> Decorated:
        for part in reversed(parts):
            command = part(command)
        return command

    return decorate


def steps_option() -> Decorator[Any]:
    return click.option(
        "--steps",
        type=click.IntRange(1, MAX_STEPS),
        help="Denoising steps.  [default: the model's own]",
    )


def time_limit_option(more: str = "") -> Decorator[Any]:
    return click.option(
        "--time-limit",
        "time_limit_s",
        type=DURATION,
        help=f"Publish the best proved by then, such as 8m or 1h30m{more}.  [default: none]",
    )


def python_option(help_text: str) -> Decorator[Any]:
    return click.option(
        "--python",
        type=click.Path(exists=True, dir_okay=False, executable=True, path_type=Path),
        help=help_text,
    )
