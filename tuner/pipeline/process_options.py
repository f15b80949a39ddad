"""Process-wide settings of a plan that torch takes after it was imported."""

from __future__ import annotations

import torch

from registry.plan import Plan

EXPANDABLE = "expandable_segments:True"
REMEDY = f"apply the plan first, or start with PYTORCH_CUDA_ALLOC_CONF={EXPANDABLE}"


def set_process_options(plan: Plan, device: torch.device) -> tuple[str, ...]:
    """Returns what can no longer be set in this process, each with what to do about it.

    A worker starts with everything set; an app may have used CUDA before."""
    options = plan.process
    torch.set_float32_matmul_precision(options.float32_matmul_precision)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch._dynamo.config.recompile_limit = options.dynamo_recompile_limit
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.expandable_segments and device.type == "cuda" and not _expand_segments():
        return (f"CUDA was used before {EXPANDABLE} could be set: {REMEDY}",)
    return ()


def _expand_segments() -> bool:
    """Whether the allocator's segments are expandable now."""
    settings = torch._C._accelerator_getAllocatorSettings()
    if EXPANDABLE in settings:
        return True
    if torch.cuda.is_initialized():
        return bool(torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"])
    torch._C._accelerator_setAllocatorSettings(",".join(filter(None, (settings, EXPANDABLE))))
    return True
