"""Plan + inventory -> Estimate: what a plan would need and how fast it would be, not running it.

Memory comes from exact weight bytes and counted activations (`memory_model`), speed from a roofline
(`speed_model`); corrections learned from trials of this machine come last. Where blocks of the
model were timed here, steps of a resident denoiser are their sum (`block_sums`) and need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from registry.environment import Hardware
from registry.inventory import ComponentInventory, ModelInventory, ShapeProfile
from registry.plan import (
    AttentionBackend,
    ComponentPlan,
    Dtype,
    PipelineOptions,
    Placement,
    Plan,
    Quantization,
)
from registry.record import Estimate
from registry.workload import Shape, Workload
from tuner.activities import profile_for
from tuner.block_sums import SOURCE, BlockSums, outside_blocks, siblings
from tuner.blocks import WeightTable
from tuner.candidate import uncached_estimate
from tuner.corrections import Corrections, learn
from tuner.footprint import Footprint, footprint
from tuner.layers import LayerTable
from tuner.memory_model import MemoryModel, MemoryNeed
from tuner.rooflines import attention_efficiency, peaks_of
from tuner.speed_model import RequestTimes, SpeedModel

__all__ = ["Breakdown", "Corrections", "CostModel", "learn", "smallest_budget"]

StepKey = tuple[int, AttentionBackend, bool, Dtype, Workload]
MemoryKey = tuple[Dtype, Workload, bool, bool, tuple[int, ...]]


@dataclass(frozen=True)
class Breakdown:
    """What an estimate consists of, before factors learned from trials."""

    memory: MemoryNeed
    times: RequestTimes


class CostModel:
    """Estimates for one model on one device. Deterministic; remembers what plans share.

    `cpu_isa` (as in `Runtime`) sharpens the peaks of a CPU device; `blocks` are timed ones.
    """

    def __init__(
        self,
        inventory: ModelInventory,
        hardware: Hardware,
        corrections: Corrections | None = None,
        *,
        cpu_isa: str | None = None,
        blocks: BlockSums | None = None,
    ) -> None:
        self.inventory = inventory
        self.layers, self.weights = LayerTable(), WeightTable()
        self.corrections = corrections or Corrections()
        self._blocks = blocks
        self._steps_by_blocks: dict[StepKey, tuple[ComponentPlan, float | None]] = {}
        peaks = self._peaks = peaks_of(hardware, cpu_isa)
        self._is_cpu = hardware.device == "cpu"
        self._memory = MemoryModel(peaks, self.corrections.outside_bytes)
        self._speed = SpeedModel(peaks)
        self._plain = ComponentPlan()
        self._bare: dict[Dtype, PipelineOptions] = {}
        self._least: dict[tuple[ComponentPlan, Dtype, Workload], tuple[int, int]] = {}
        self._profiles: dict[Shape, ShapeProfile] = {}
        # By identity, like `RuleBook`: plans share choices, and hashing one costs more. A footprint
        # keeps its choice, so that its identity cannot be given to another.
        self._footprints: dict[tuple[str, Dtype, int], Footprint] = {}
        self._placed: dict[tuple[str, Dtype, Quantization, Placement], Footprint] = {}
        self._needs: dict[MemoryKey, MemoryNeed] = {}

    def estimate(self, plan: Plan, workload: Workload, steps: int | None = None) -> Estimate:
        """Peak memory over the workload's shapes, and weighted mean times at `steps` (the
        pipeline's default). A plan that caches steps is predicted as one that computes them all,
        and its source says so. Raises `activities.NoProfile` for an inventory without profiles."""
        parts = self.breakdown(plan, workload)
        times = parts.times
        count = self.inventory.default_steps if steps is None else steps
        choice = plan.pipeline.components.get(self.inventory.denoiser.name, self._plain)
        backend = plan.pipeline.attention_backend
        step_s = times.step_s * self.corrections.step_factor(choice, backend)
        summed_s = self._step_by_blocks(plan, choice, workload, times)
        peak_bytes, host_bytes = self._needed(choice, parts.memory)
        estimate = Estimate(
            peak_vram_bytes=peak_bytes,
            load_peak_vram_bytes=self._corrected(choice, parts.memory.load_peak_bytes, 0),
            host_bytes=host_bytes,
            step_ms=(summed_s or step_s) * 1000,
            latency_s=times.fixed_s * self.corrections.fixed + count * (summed_s or step_s),
            source=SOURCE if summed_s else self.corrections.source,
        )
        return uncached_estimate(estimate) if plan.pipeline.step_cache else estimate

    def least_bytes(
        self, choice: ComponentPlan, dtype: Dtype, workload: Workload
    ) -> tuple[int, int]:
        """Device and host memory that every plan with this choice for the denoiser needs at the
        least: those of the denoiser alone and uncompiled, to which whatever else a plan holds can
        only add."""
        bare = ComponentPlan(quantization=choice.quantization, placement=choice.placement)
        key = (bare, dtype, workload)
        if key not in self._least:
            self._least[key] = self._least_bytes(bare, dtype, workload)
        return self._least[key]

    def _least_bytes(
        self, choice: ComponentPlan, dtype: Dtype, workload: Workload
    ) -> tuple[int, int]:
        options = self._bare.setdefault(dtype, PipelineOptions(dtype=dtype, components={}))
        index = self.inventory.components.index(self.inventory.denoiser)
        alone = self._footprint(index, choice, dtype)
        profiles = [self._profile(shape) for shape in workload.shapes]
        return self._needed(choice, self._need(options, workload, [alone], profiles))

    def leading_backends(
        self, backends: Sequence[AttentionBackend]
    ) -> tuple[AttentionBackend, ...]:
        """Without those that are predicted to be no faster than one before them, whatever else a
        plan holds. All of them where trials or timed blocks tell backends apart."""
        if self.corrections.step or self._blocks is not None:
            return tuple(backends)
        shares = [attention_efficiency(backend, self._peaks) for backend in backends]
        return tuple(
            backend
            for place, backend in enumerate(backends)
            if shares[place] > max(shares[:place], default=0.0)
        )

    def _needed(self, choice: ComponentPlan, memory: MemoryNeed) -> tuple[int, int]:
        """Device and host memory, corrected. A CPU's device memory is the host's."""
        peak_bytes = self._corrected(choice, memory.peak_bytes, memory.weight_bytes)
        return peak_bytes, memory.host_bytes + (peak_bytes if self._is_cpu else 0)

    def _step_by_blocks(
        self, plan: Plan, choice: ComponentPlan, workload: Workload, times: RequestTimes
    ) -> float | None:
        """Seconds of a step by timed blocks: of this plan, or of one like it in proportion to what
        the roofline says of both. None without blocks that tell."""
        if self._blocks is None or choice.placement.kind != "resident":
            return None
        options = plan.pipeline
        key = (id(choice), options.attention_backend, options.fuse_qkv, options.dtype, workload)
        if key not in self._steps_by_blocks:
            found = self._like(self._blocks, plan, times)
            self._steps_by_blocks[key] = (choice, found)
        return self._steps_by_blocks[key][1]

    def _like(self, blocks: BlockSums, plan: Plan, times: RequestTimes) -> float | None:
        name = self.inventory.denoiser.name
        for sibling in siblings(plan, name, blocks.quantizations):
            blocks_ms = blocks.plan_ms(sibling, name)
            if blocks_ms is not None:
                step_s = blocks_ms / 1000 + self._rest_s(blocks, sibling)
                guessed = self.breakdown(sibling, Workload(shapes=(blocks.shape,))).times
                return step_s * times.step_s / guessed.step_s
        return None

    def _rest_s(self, blocks: BlockSums, plan: Plan) -> float:
        """What is not in blocks, as the baseline showed it, or by the roofline; it is not compiled
        where blocks alone are."""
        if blocks.rest_ms is not None:
            return blocks.rest_ms / 1000
        denoiser = self.inventory.denoiser
        activity = self._profile(blocks.shape).activity(denoiser.name)
        if activity is None:
            return 0.0
        rest = outside_blocks(self.inventory, activity, blocks.kinds)
        linears = tuple(item for item in denoiser.linears if item.name in rest.linear_rows)
        outside = denoiser.model_copy(update={"linears": linears, "repeated_blocks": ()})
        own = footprint(outside, self._plain, (), plan.pipeline.dtype)
        return self._speed.once(plan.pipeline, own, rest)

    def breakdown(self, plan: Plan, workload: Workload) -> Breakdown:
        """The parts of an estimate: which phase peaks and of what, which part takes how long."""
        dtype = plan.pipeline.dtype
        components = plan.pipeline.components
        footprints = [
            self._footprint(index, components.get(item.name, self._plain), dtype)
            for index, item in enumerate(self.inventory.components)
        ]
        profiles = [self._profile(shape) for shape in workload.shapes]
        return Breakdown(
            self._need(plan.pipeline, workload, footprints, profiles),
            self._speed.request(plan.pipeline, footprints, profiles),
        )

    def _need(
        self,
        options: PipelineOptions,
        workload: Workload,
        footprints: Sequence[Footprint],
        profiles: Sequence[ShapeProfile],
    ) -> MemoryNeed:
        """Attention backend and fusion change no bytes, so most plans share this."""
        placed = tuple(id(item.choice) for item in footprints)
        key = (options.dtype, workload, options.vae.tiling, options.vae.slicing, placed)
        if key not in self._needs:
            self._needs[key] = self._memory.need(options, footprints, profiles)
        return self._needs[key]

    def _footprint(self, index: int, choice: ComponentPlan, dtype: Dtype) -> Footprint:
        component = self.inventory.components[index]
        key = (component.name, dtype, id(choice))
        if key not in self._footprints:
            known = self._weighed(component, choice, dtype)
            self._footprints[key] = replace(known, choice=choice)
        return self._footprints[key]

    def _weighed(
        self, component: ComponentInventory, choice: ComponentPlan, dtype: Dtype
    ) -> Footprint:
        """The footprint of a choice of the same weights at the same place, compiled or not."""
        key = (component.name, dtype, choice.quantization, choice.placement)
        if key not in self._placed:
            touched = self.layers.quantized(component, choice.quantization)
            self._placed[key] = footprint(component, choice, touched, dtype, self.weights)
        return self._placed[key]

    def _profile(self, shape: Shape) -> ShapeProfile:
        if shape not in self._profiles:
            self._profiles[shape] = profile_for(self.inventory, shape)
        return self._profiles[shape]

    def _corrected(self, choice: ComponentPlan, peak_bytes: int, weight_bytes: int) -> int:
        """Never below the weights themselves: those are exact."""
        factor = self.corrections.peak.get(choice.placement.kind, 1.0)
        return max(round(peak_bytes * factor), weight_bytes)


def smallest_budget(estimates: Iterable[Estimate]) -> int | None:
    """The smallest VRAM budget in which one of these would fit; None for no estimates."""
    return min((estimate.peak_vram_bytes for estimate in estimates), default=None)
