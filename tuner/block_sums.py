"""Step time as a sum: each kind of block as it was timed, as often as it occurs, and the rest.

A diffusion transformer is many copies of a few blocks, so a step is nearly their sum. What is not
in blocks (embeddings, convolutions, the last layers) is the baseline's measured step less its own
blocks; without a baseline that can say so it is a roofline's estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from registry.inventory import ComponentActivity, LinearLayer, ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    LayerScheme,
    Plan,
    Quantization,
    Resident,
)
from registry.record import Measurement
from registry.timing import Timing, TimingContext, TimingKey
from registry.workload import Shape
from tuner.block_kinds import Bench, BlockKind, LayerSchemes
from tuner.layers import scheme_of

SOURCE = "blocks"
REGIONAL = Compilation(scope="regional", fullgraph=True)
NONE = Quantization()


@dataclass(frozen=True)
class BlockSums:
    """Of one denoiser at one shape. `timings` are by key; those without a time say nothing.
    `rest_ms` is what a step spends outside its blocks, None unknown; `quantizations` are those that
    blocks were timed under.
    """

    kinds: tuple[BlockKind, ...]
    bench: Bench
    shape: Shape
    timings: Mapping[TimingKey, Timing]
    rest_ms: float | None = None
    quantizations: tuple[Quantization, ...] = ()
    _sums: dict[tuple[Quantization, AttentionBackend, TimingContext], float | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def plan_ms(self, plan: Plan, denoiser: str) -> float | None:
        """All blocks of a step. None for a plan whose blocks were not timed: that offloads the
        denoiser, fuses its projections, or compiles it otherwise than block by block."""
        own = plan.pipeline.component(denoiser)
        plain = own.placement.kind == "resident" and not plan.pipeline.fuse_qkv
        if not plain or plan.pipeline.dtype != self.bench.dtype or own.channels_last:
            return None
        context = _context(own.compilation)
        if context is None:
            return None
        return self.blocks_ms(own.quantization, plan.pipeline.attention_backend, context)

    def blocks_ms(
        self,
        quantization: Quantization = NONE,
        backend: AttentionBackend = "default",
        context: TimingContext = "compiled",
    ) -> float | None:
        """All blocks of a step under these choices."""
        key = (quantization, backend, context)
        if key not in self._sums:
            self._sums[key] = self._sum_ms(quantization, backend, context)
        return self._sums[key]

    def _sum_ms(
        self, quantization: Quantization, backend: AttentionBackend, context: TimingContext
    ) -> float | None:
        total_ms = 0.0
        for kind in self.kinds:
            for layers, count in _variants(kind, quantization).items():
                block_ms = self._block_ms(kind, layers, backend, context)
                if block_ms is None:
                    return None
                total_ms += count * block_ms
        return total_ms if self.kinds else None

    def _block_ms(
        self,
        kind: BlockKind,
        layers: LayerSchemes,
        backend: AttentionBackend,
        context: TimingContext,
    ) -> float | None:
        """As timed; else by the schemes and the backend each alone; else by its layers."""
        exact = self._ms(self.bench.block(kind, layers, backend, context))
        if exact is not None or context == "eager":
            return exact
        plain = self._ms(self.bench.block(kind))
        quantized = self._ms(self.bench.block(kind, layers))
        if quantized is None:
            quantized = self._by_layers(kind, layers, plain)
        attended = self._ms(self.bench.block(kind, (), backend))
        if plain is None or quantized is None or attended is None:
            return None
        return max(quantized + attended - plain, min(quantized, attended) / 2)

    def _by_layers(
        self, kind: BlockKind, layers: LayerSchemes, plain_ms: float | None
    ) -> float | None:
        """The plain block, and what each quantized layer of it gains or loses."""
        gained_ms = self._layers_gain_ms(kind, layers)
        if plain_ms is None or gained_ms is None or gained_ms >= plain_ms:
            return None
        return plain_ms - gained_ms

    def layers_gain_ms(self, quantization: Quantization) -> float | None:
        """What the quantized layers of all blocks gain by their own timings; None if one has
        none."""
        total_ms = 0.0
        for kind in self.kinds:
            for layers, count in _variants(kind, quantization).items():
                gained_ms = self._layers_gain_ms(kind, layers)
                if gained_ms is None:
                    return None
                total_ms += count * gained_ms
        return total_ms

    def _layers_gain_ms(self, kind: BlockKind, layers: LayerSchemes) -> float | None:
        schemes, total_ms = dict(layers), 0.0
        for layer, rows in zip(kind.layers, kind.rows, strict=True):
            scheme = schemes.get(kind.inside(layer), "none")
            if scheme == "none" or rows == 0:
                continue
            before_ms = self.layer_ms(layer, rows, "none")
            after_ms = self.layer_ms(layer, rows, scheme)
            if before_ms is None or after_ms is None:
                return None
            total_ms += before_ms - after_ms
        return total_ms

    def layer_ms(self, layer: LinearLayer, rows: int, scheme: LayerScheme) -> float | None:
        """A layer alone among its neighbours: for comparing."""
        return self._ms(self.bench.linear(layer, rows, scheme))

    def _ms(self, key: TimingKey) -> float | None:
        found = self.timings.get(key)
        return None if found is None else found.median_ms


def siblings(plan: Plan, denoiser: str, known: Sequence[Quantization]) -> tuple[Plan, ...]:
    """The plan itself, then plans ever less like it whose blocks may have been timed: compiled
    block by block and not fused; then also quantized by the same scheme otherwise."""
    own = plan.pipeline.component(denoiser)
    if own.placement.kind != "resident":
        return ()
    plain = ComponentPlan(
        quantization=own.quantization,
        placement=Resident(),
        compilation=REGIONAL if own.compilation.scope != "none" else Compilation(),
    )
    scheme = own.quantization.scheme
    others = [
        plain.model_copy(update={"quantization": item}) for item in known if item.scheme == scheme
    ]
    return (plan, *(_with(plan, denoiser, choice) for choice in (plain, *others)))


def measured_rest_ms(
    sums: BlockSums, baseline: Plan, measured: Measurement, denoiser: str
) -> float | None:
    """What the baseline's step takes beside its blocks; None where it cannot say: offloaded,
    disturbed, or its own blocks not timed."""
    whole_ms = next((m.step_ms for m in measured.shapes if m.shape.same_request(sums.shape)), None)
    blocks_ms = sums.plan_ms(baseline, denoiser)
    if whole_ms is None or blocks_ms is None or measured.contaminated is not None:
        return None
    return max(0.0, whole_ms - blocks_ms)


def outside_blocks(
    inventory: ModelInventory, activity: ComponentActivity, kinds: Sequence[BlockKind]
) -> ComponentActivity:
    """A call of the denoiser without its blocks. Attention lies in blocks; element-wise traffic is
    taken to be spread like the FLOPs."""
    inside = {
        f"{block}.{kind.inside(layer)}"
        for kind in kinds
        for block in kind.names
        for layer in kind.layers
    }
    linears = {item.name: item for item in inventory.denoiser.linears}
    rows = {name: count for name, count in activity.linear_rows.items() if name not in inside}
    flops = sum(2 * count * linears[name].weight_elements for name, count in rows.items())
    whole = activity.linear_flops + activity.convolution_flops + activity.attention_flops
    share = (flops + activity.convolution_flops) / max(whole, 1)
    return activity.model_copy(
        update={
            "linear_flops": flops,
            "attention_flops": 0,
            "elementwise_bytes": round(activity.elementwise_bytes * share),
            "linear_rows": rows,
        }
    )


def _context(compilation: Compilation) -> TimingContext | None:
    if compilation == Compilation():
        return "eager"
    return "compiled" if compilation == REGIONAL else None


def _variants(kind: BlockKind, quantization: Quantization) -> dict[LayerSchemes, int]:
    """How many blocks of a kind are quantized how: patterns may name single blocks."""
    if quantization.scheme == "none":
        return {(): len(kind.names)}
    found: dict[LayerSchemes, int] = {}
    for block in kind.names:
        schemes = []
        for layer in kind.layers:
            inside = kind.inside(layer)
            own = layer.model_copy(update={"name": f"{block}.{inside}"})
            schemes.append((inside, scheme_of(own, quantization)))
        layers = tuple(item for item in schemes if item[1] != "none")
        found[layers] = found.get(layers, 0) + 1
    return found


def _with(plan: Plan, denoiser: str, choice: ComponentPlan) -> Plan:
    components = {**plan.pipeline.components, denoiser: choice}
    pipeline = plan.pipeline.model_copy(update={"components": components, "fuse_qkv": False})
    return plan.model_copy(update={"pipeline": pipeline})
