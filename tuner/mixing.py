"""From timed layers to a mixed quantization: groups, budgets, and what decided.

A group is one layer of a block in all its copies. Its time is its own timing as often as it occurs,
scaled so that a block quantized alike all through takes what that block was measured to take. Its
noise is each layer's share of the step's, taken to add up, times a factor: how much more noise the
whole step has than its layers on average, from trials of this study where there are any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from registry.inventory import LinearLayer
from registry.plan import LayerScheme, Quantization, Scheme
from registry.record import Policy, Trial
from tuner.autoquant import Budget, LayerChoice, LayerGroup, choose
from tuner.block_kinds import BlockKind
from tuner.block_sums import BlockSums
from tuner.candidate import Candidate
from tuner.layers import DTYPE_BYTES, quantized_layer_bytes, scheme_of
from tuner.policies import REQUIRED, least

NOISE_FACTOR = 4.0
"""A guess, for as long as no trial of the study says better: errors of layers add up in a step."""
NOISE_FACTORS = (0.1, 100.0)
SCALES = (0.5, 2.0)
"""A block that contradicts its layers by more than this leaves them as they were timed."""
LEAST_GAIN = 0.003
"""Of a step. A mixture must be this much faster than every scheme alone to be worth a trial."""


@dataclass(frozen=True)
class Mixture:
    """A mixed quantization, the groups it was chosen among and what each got."""

    quantization: Quantization
    groups: tuple[LayerGroup, ...]
    chosen: tuple[LayerChoice, ...]

    def as_data(self) -> list[dict[str, Any]]:
        """One row a group: what it got, and the milliseconds of a step that decided."""
        return [
            {
                "layers": list(group.patterns),
                "scheme": choice.scheme,
                "ms": {item.scheme: round(item.ms, 4) for item in group.choices},
            }
            for group, choice in zip(self.groups, self.chosen, strict=True)
        ]


def mixtures_of(trials: Iterable[Trial], denoiser: str) -> tuple[Quantization, ...]:
    """Those that trials tried, in their order: a study that goes on knows more by now, and may
    choose another, but what it began stays a candidate."""
    chosen = (trial.plan.pipeline.component(denoiser).quantization for trial in trials)
    return tuple(dict.fromkeys(item for item in chosen if item.scheme == "mixed"))


def mix(
    sums: BlockSums,
    quantizations: Sequence[Quantization],
    candidates: Iterable[Candidate],
    *,
    denoiser: str,
    policy: Policy,
    calibrated: bool = False,
    budget_bytes: int,
    trials: Iterable[Trial] = (),
) -> Mixture | None:
    """The best mixture of these uniform quantizations within the policy's noise and the memory;
    None where layers were not timed or a single scheme is as good. The first quantization says
    which layers are left alone whatever their time."""
    if not quantizations:
        return None
    groups = layer_groups(sums, quantizations)
    if not groups:
        return None
    factor = noise_factor(groups, quantizations, trials, denoiser)
    limit = Budget(
        noise=10 ** (-least(policy, REQUIRED, calibrated=calibrated) / 10) / factor,
        weight_bytes=_room(groups, quantizations, candidates, denoiser, budget_bytes),
    )
    chosen = choose(groups, limit)
    if chosen is None or not _is_worth_it(groups, chosen, limit, sums):
        return None
    return Mixture(_quantization(quantizations[0], groups, chosen), groups, chosen)


def layer_groups(sums: BlockSums, quantizations: Sequence[Quantization]) -> tuple[LayerGroup, ...]:
    """Groups whose layers were all timed, plain and under some of these schemes."""
    members: dict[tuple[str, str], list[_Member]] = {}
    for member in _members(sums.kinds, quantizations[0]):
        members.setdefault((member.kind.class_name, member.inside), []).append(member)
    layers = sum(len(m.kind.names) for group in members.values() for m in group)
    scales = {item.scheme: _scale(sums, item) for item in quantizations}
    found = (_group(sums, group, quantizations, scales, layers) for group in members.values())
    return tuple(group for group in found if len(group.choices) > 1)


@dataclass(frozen=True)
class _Member:
    """One layer of one kind of block."""

    kind: BlockKind
    inside: str
    layer: LinearLayer
    rows: int


def _members(kinds: Iterable[BlockKind], base: Quantization) -> Iterator[_Member]:
    for kind in kinds:
        for layer, rows in zip(kind.layers, kind.rows, strict=True):
            if rows and scheme_of(layer, base) != "none":
                yield _Member(kind, kind.inside(layer), layer, rows)


def _group(
    sums: BlockSums,
    members: Sequence[_Member],
    quantizations: Sequence[Quantization],
    scales: Mapping[Scheme, float],
    layers: int,
) -> LayerGroup:
    plain = _choice(sums, members, "none", 1.0, layers)
    choices = [plain] if plain is not None else []
    for item in quantizations:
        schemes = {scheme_of(member.layer, item) for member in members}
        if plain is None or len(schemes) != 1 or schemes == {"none"}:
            continue
        choice = _choice(sums, members, schemes.pop(), scales[item.scheme], layers)
        choices += [choice] if choice is not None else []
    names = {f"{_starred(name)}.{m.inside}" for m in members for name in m.kind.names}
    return LayerGroup(tuple(sorted(names)), tuple(choices))


def _choice(
    sums: BlockSums, members: Sequence[_Member], scheme: LayerScheme, scale: float, layers: int
) -> LayerChoice | None:
    """None where a layer was not timed so, or not scored."""
    ms = noise = 0.0
    size = 0
    for member in members:
        timed = _layer_ms(sums, member, scheme, scale)
        layer_noise = _noise(sums, member, scheme)
        if timed is None or layer_noise is None:
            return None
        count = len(member.kind.names)
        ms += count * timed
        noise += count * layer_noise / layers
        size += count * _bytes(member.layer, scheme, sums)
    return LayerChoice(scheme, ms, noise, size)


def _layer_ms(sums: BlockSums, member: _Member, scheme: LayerScheme, scale: float) -> float | None:
    plain_ms = sums.layer_ms(member.layer, member.rows, "none")
    own_ms = sums.layer_ms(member.layer, member.rows, scheme)
    if plain_ms is None or own_ms is None:
        return None
    return plain_ms + (own_ms - plain_ms) * scale


def _noise(sums: BlockSums, member: _Member, scheme: LayerScheme) -> float | None:
    if scheme == "none":
        return 0.0
    timing = sums.timings.get(sums.bench.linear(member.layer, member.rows, scheme))
    sqnr_db = None if timing is None else timing.sqnr_db
    return None if sqnr_db is None else 10 ** (-sqnr_db / 10)


def _bytes(layer: LinearLayer, scheme: LayerScheme, sums: BlockSums) -> int:
    if scheme == "none":
        return layer.weight_elements * DTYPE_BYTES[sums.bench.dtype]
    return quantized_layer_bytes(layer, scheme)


def _scale(sums: BlockSums, quantization: Quantization) -> float:
    """What the blocks gained over what their layers did."""
    plain_ms, whole_ms = sums.blocks_ms(), sums.blocks_ms(quantization)
    by_layers_ms = sums.layers_gain_ms(quantization)
    if plain_ms is None or whole_ms is None or not by_layers_ms:
        return 1.0
    scale = (plain_ms - whole_ms) / by_layers_ms
    return scale if SCALES[0] <= scale <= SCALES[1] else 1.0


def noise_factor(
    groups: Sequence[LayerGroup],
    quantizations: Sequence[Quantization],
    trials: Iterable[Trial],
    denoiser: str,
) -> float:
    """How many times the layers' noise the measured steps had, the median over trials."""
    predicted = {item: _uniform_noise(groups, item) for item in quantizations}
    found = []
    for trial in trials:
        own = predicted.get(trial.plan.pipeline.component(denoiser).quantization)
        worst_db = None if trial.quality is None else trial.quality.worst.get(REQUIRED)
        if own and worst_db is not None:
            found.append(10 ** (-worst_db / 10) / own)
    factor = median(found) if found else NOISE_FACTOR
    return min(max(factor, NOISE_FACTORS[0]), NOISE_FACTORS[1])


def _uniform_noise(groups: Sequence[LayerGroup], quantization: Quantization) -> float:
    return sum(
        c.noise for group in groups for c in group.choices if c.scheme == quantization.scheme
    )


def _room(
    groups: Sequence[LayerGroup],
    quantizations: Sequence[Quantization],
    candidates: Iterable[Candidate],
    denoiser: str,
    budget_bytes: int,
) -> float:
    """Bytes that the groups' weights may take: the budget less what the leanest plan with a
    resident denoiser needs beside them. No limit where there is no such plan to tell."""
    rooms = []
    sizes = {item: _uniform_bytes(groups, item) for item in quantizations}
    for candidate in candidates:
        own = candidate.plan.pipeline.component(denoiser)
        if own.placement.kind == "resident" and own.quantization in sizes:
            beside = candidate.estimate.peak_vram_bytes - sizes[own.quantization]
            rooms.append(budget_bytes - beside)
    return max(rooms, default=math.inf)


def _uniform_bytes(groups: Sequence[LayerGroup], quantization: Quantization) -> int:
    total = 0
    for group in groups:
        by_scheme = {choice.scheme: choice.weight_bytes for choice in group.choices}
        total += by_scheme.get(_layer_scheme(quantization), by_scheme["none"])
    return total


def _layer_scheme(quantization: Quantization) -> LayerScheme:
    return "none" if quantization.scheme == "mixed" else quantization.scheme


def _is_worth_it(
    groups: Sequence[LayerGroup], chosen: Sequence[LayerChoice], limit: Budget, sums: BlockSums
) -> bool:
    """Against each scheme alone that keeps the budgets, and against none."""
    step_ms = (sums.blocks_ms() or 0.0) + (sums.rest_ms or 0.0)
    own_ms = sum(choice.ms for choice in chosen)
    others = [ms for ms in _uniform_ms(groups, limit) if ms is not None]
    return min(others, default=math.inf) - own_ms > LEAST_GAIN * step_ms


def _uniform_ms(groups: Sequence[LayerGroup], limit: Budget) -> Iterator[float | None]:
    for scheme in {choice.scheme for group in groups for choice in group.choices}:
        same = [
            next((item for item in group.choices if item.scheme == scheme), group.choices[0])
            for group in groups
        ]
        noise = sum(item.noise for item in same)
        size = sum(item.weight_bytes for item in same)
        fits = noise <= limit.noise and size <= limit.weight_bytes
        yield sum(item.ms for item in same) if fits else None


def _quantization(
    base: Quantization, groups: Sequence[LayerGroup], chosen: Sequence[LayerChoice]
) -> Quantization:
    layers = {
        pattern: choice.scheme
        for group, choice in zip(groups, chosen, strict=True)
        if choice.scheme != "none"
        for pattern in group.patterns
    }
    return Quantization(
        scheme="mixed", layers=layers, skip=base.skip, min_features=base.min_features
    )


def _starred(block: str) -> str:
    """A block's name with `*` for its numbers: names inside a block keep theirs, which tell its
    layers apart."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", block)
