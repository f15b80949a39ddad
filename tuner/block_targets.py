"""What a study wants timed of blocks and layers, the most telling first.

Schemes and attention backends hardly act on each other, so each is timed with the other left plain:
the sum of both effects stands for the pair, and a few dozen timings for thousands of plans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from registry.inventory import ModelInventory
from registry.plan import AttentionBackend, Plan, Quantization
from registry.timing import TimingKey
from registry.workload import Shape, Workload
from tuner.activities import NoProfile, profile_for
from tuner.block_kinds import Bench, BlockKind, LayerSchemes, block_kinds
from tuner.layers import scheme_of
from tuner.protocol import TimingTarget


def typical_shape(workload: Workload) -> Shape:
    """The shape that blocks are timed at: the one most of the workload's pixels are in."""
    return max(
        workload.shapes,
        key=lambda item: item.weight * item.height * item.width * item.frames * item.batch_size,
    )


def kinds_at(inventory: ModelInventory, shape: Shape) -> tuple[BlockKind, ...]:
    """The denoiser's kinds of blocks; empty where the inventory says too little."""
    try:
        activity = profile_for(inventory, shape).activity(inventory.denoiser.name)
    except NoProfile:
        return ()
    return () if activity is None else block_kinds(inventory.denoiser, activity)


@dataclass(frozen=True)
class Choices:
    """The distinct choices among plans that keep the denoiser on the device, in their order."""

    quantizations: tuple[Quantization, ...]
    backends: tuple[AttentionBackend, ...]


def choices_among(plans: Iterable[Plan], denoiser: str) -> Choices:
    """Of each scheme the first quantization. Only plans that compile the denoiser count: of others
    a trial says as much."""
    quantizations: dict[str, Quantization] = {}
    backends: dict[AttentionBackend, None] = {}
    for plan in plans:
        own = plan.pipeline.component(denoiser)
        if own.placement.kind == "resident" and own.compilation.scope != "none":
            quantizations.setdefault(own.quantization.scheme, own.quantization)
            backends.setdefault(plan.pipeline.attention_backend)
    return Choices(tuple(quantizations.values()), tuple(backends))


def block_targets(
    kinds: Iterable[BlockKind], bench: Bench, shape: Shape, choices: Choices
) -> tuple[TimingTarget, ...]:
    """Each kind unquantized, eager too; then under each quantization, then each backend."""
    found = [
        TimingTarget(key=key, path=kind.names[0], shape=shape, layers=dict(layers))
        for kind in kinds
        for key, layers in _block_keys(kind, bench, choices)
    ]
    return tuple({target.key: target for target in found}.values())


def _block_keys(
    kind: BlockKind, bench: Bench, choices: Choices
) -> Iterator[tuple[TimingKey, LayerSchemes]]:
    yield bench.block(kind), ()
    yield bench.block(kind, context="eager"), ()
    for quantization in choices.quantizations:
        layers = kind.schemes(quantization)
        yield bench.block(kind, layers), layers
    for backend in choices.backends:
        yield bench.block(kind, backend=backend), ()


def layer_targets(
    kinds: Iterable[BlockKind],
    bench: Bench,
    shape: Shape,
    quantizations: Collection[Quantization],
) -> tuple[TimingTarget, ...]:
    """Each distinct linear layer of the blocks that some of these change, plain and under each."""
    found: dict[TimingKey, TimingTarget] = {}
    for kind in kinds:
        for layer, rows in zip(kind.layers, kind.rows, strict=True):
            schemes = {scheme_of(layer, item) for item in quantizations} - {"none"}
            for scheme in ("none", *sorted(schemes)) if schemes else ():
                key = bench.linear(layer, rows, scheme)
                found.setdefault(key, TimingTarget(key=key, path=kind.names[0], shape=shape))
    return tuple(found.values())
