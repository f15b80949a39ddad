"""The least time that a step's work can take on a device: the cost model's roofline, by kind of
work.

A floor is what the best kernels known here would take for the plan's own arithmetic: its schemes
and dtype as they are, everything compiled, the fastest attention that keeps the picture, weights
that stream at the link's full speed. `tuner.rooflines` says which of its figures were measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry.environment import Environment
from registry.inventory import ComponentActivity, ModelInventory
from registry.plan import AttentionBackend, Plan
from registry.workload import Shape
from tuner.activities import activity_of, profile_for
from tuner.call_model import CallModel
from tuner.footprint import Footprint, footprint
from tuner.kernels import WorkClass
from tuner.layers import quantized_layers
from tuner.rooflines import ATTENTION_EFFICIENCY, Peaks, attention_efficiency, peaks_of
from tuner.space import LOSSY_ATTENTION

STREAMED = frozenset({"group_offload", "sequential_offload"})
"""Placements whose weights cross the link in every step."""


def step_floors_ms(
    inventory: ModelInventory, environment: Environment, plan: Plan, shape: Shape
) -> Mapping[WorkClass, float]:
    """Milliseconds of one denoiser step by kind of work; kinds that the step has none of are left
    out. "elementwise" holds normalisation and quantization too: what the bytes they move take.

    Raises `activities.NoProfile` for an inventory without profiles.
    """
    peaks = peaks_of(environment.hardware, environment.runtime.cpu_isa)
    component, choice = inventory.denoiser, plan.pipeline.component(inventory.denoiser.name)
    touched = quantized_layers(component, choice.quantization)
    item = footprint(component, choice, touched, plan.pipeline.dtype)
    activity = activity_of(profile_for(inventory, shape), component, plan.pipeline.vae)
    if activity is None:
        return {}
    model = CallModel(peaks, plan.pipeline.dtype)
    products_s, packing_s = _linear_s(model, item, activity)
    found: dict[WorkClass, float] = {
        "matmul": products_s,
        "attention": model.attention_s(activity, _best_attention(peaks)),
        "convolution": model.convolution_s(activity, channels_last=True),
        "elementwise": packing_s + model.elementwise_s(activity, compiled=True),
        "copies": _copies_s(peaks, item),
    }
    return {name: s * activity.calls * 1000 for name, s in found.items() if s > 0}


def _linear_s(
    model: CallModel, item: Footprint, activity: ComponentActivity
) -> tuple[float, float]:
    """Matrix products, and quantizing around them."""
    quantized = {layer.name for layer in item.touched}
    wanted = item.choice.quantization.wanted
    products_s = packing_s = 0.0
    for layer in item.component.linears:
        if rows := activity.linear_rows.get(layer.name, 0):
            scheme = wanted(layer.name) if layer.name in quantized else "none"
            products_s += model.product_s(layer, rows, scheme)
            packing_s += model.packing_s(layer, rows, scheme, compiled=True)
    return products_s, packing_s


def _best_attention(peaks: Peaks) -> AttentionBackend:
    exact = [name for name in ATTENTION_EFFICIENCY if name not in LOSSY_ATTENTION]
    return max(exact, key=lambda name: attention_efficiency(name, peaks))


def _copies_s(peaks: Peaks, item: Footprint) -> float:
    if item.choice.placement.kind not in STREAMED or not peaks.is_cuda:
        return 0.0
    return item.weight_bytes / peaks.link_bytes_per_s
