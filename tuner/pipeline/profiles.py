"""What a request costs, without its weights: the whole pipeline runs, its modules on meta.

The pipeline's own Python runs as it is, on the CPU with zeros; each module call goes to meta,
is counted there, and comes back as zeros of the right shape. So any pipeline class is counted
by its own code, with no adapter for its family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from registry.inventory import ComponentActivity, ShapeProfile
from registry.workload import Shape
from tuner.pipeline.components import component_role
from tuner.pipeline.counting import META, Tally, count_call
from tuner.pipeline.request import call_arguments
from tuner.pipeline.skeleton import Skeleton

COUNTED_STEPS = 2


def phantom_pipeline(skeleton: Skeleton) -> Any:
    """The pipeline with its modules on meta; it believes that it runs on the CPU."""
    pipe = skeleton.pipeline()
    pipe.set_progress_bar_config(disable=True)
    on_cpu = property(lambda _: torch.device("cpu"))
    phantom = type(pipe).__name__
    pipe.__class__ = type(phantom, (type(pipe),), {"_execution_device": on_cpu, "device": on_cpu})
    for module in skeleton.modules.values():
        module.to(META)
    return pipe


class _Recorder:
    """Stands in for one module's call: counts the first, answers all with zeros on the CPU."""

    def __init__(self, name: str, module: nn.Module, method: str) -> None:
        self.name, self.module, self.method = name, module, method
        self.original = getattr(module, method)
        self.calls = 0
        self.tally: Tally | None = None
        self.arguments: tuple[Any, Any] = ((), {})
        self._output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.tally is None:
            self.arguments = tree_map(_to_meta, (args, kwargs))
            output, self.tally = count_call(self.module, self.original, *self.arguments)
            self._output = tree_map(_to_zeros, output)
        return self._output

    def activity(self, calls: int) -> ComponentActivity:
        return to_activity(self.name, calls, self.tally or Tally())


def to_activity(name: str, calls: int, tally: Tally) -> ComponentActivity:
    return ComponentActivity(
        component=name,
        calls=calls,
        linear_flops=tally.linear_flops,
        convolution_flops=tally.convolution_flops,
        attention_flops=tally.attention_flops,
        elementwise_bytes=tally.elementwise_bytes,
        activation_peak_bytes=tally.activation_peak_bytes,
        linear_rows=tally.linear_rows,
        masked_attention=tally.masked_attention,
    )


def _to_meta(item: Any) -> Any:
    return item.to(META) if isinstance(item, torch.Tensor) else item


def _to_zeros(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return torch.zeros(item.shape, dtype=item.dtype)
    return item


def profile(pipe: Any, shape: Shape) -> ShapeProfile:
    """Every component's activity in one request of `shape` to a phantom pipeline."""
    recorders: list[_Recorder] = []
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            method = "decode" if component_role(name, module) == "vae" else "forward"
            recorder = _Recorder(name, module, method)
            setattr(module, method, recorder)
            recorders.append(recorder)
    try:
        arguments = call_arguments(pipe, shape, ["x"] * shape.batch_size, COUNTED_STEPS)
        pipe(**arguments, output_type="pt")
        used = [recorder for recorder in recorders if recorder.calls]
        return ShapeProfile(
            shape=shape,
            activities=tuple(_activity(recorder) for recorder in used),
            tiled_vae=_tiled(used),
        )
    finally:
        for recorder in recorders:
            delattr(recorder.module, recorder.method)


def _activity(recorder: _Recorder) -> ComponentActivity:
    denoises = component_role(recorder.name, recorder.module) == "denoiser"
    return recorder.activity(
        max(1, recorder.calls // COUNTED_STEPS) if denoises else recorder.calls
    )


def _tiled(recorders: list[_Recorder]) -> ComponentActivity | None:
    for recorder in recorders:
        module = recorder.module
        if recorder.method == "decode" and hasattr(module, "enable_tiling"):
            module.enable_tiling()  # type: ignore[operator]
            args, kwargs = recorder.arguments
            _, tally = count_call(module, recorder.original, args, kwargs)
            module.disable_tiling()  # type: ignore[operator]
            return to_activity(recorder.name, recorder.calls, tally)
    return None
