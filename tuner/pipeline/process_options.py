"""Process-wide settings of a plan that torch takes after it was imported."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from registry.plan import Plan

EXPANDABLE = "expandable_segments:True"
ALLOCATOR_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
REMEDY = f"start with {ALLOCATOR_VARIABLE}={EXPANDABLE}"


def allocator_conflicts(plan: Plan, device: torch.device) -> tuple[str, ...]:
    """Set the plan's allocator. Returns what cannot be set any more, with what to do about it."""
    wanted = plan.process.expandable_segments and device.type == "cuda"
    if wanted and not _expand_segments():
        return (f"the CUDA allocator did not take {EXPANDABLE}: {REMEDY}",)
    return ()


def set_process_options(plan: Plan) -> None:
    """Set all of the plan's settings but the allocator's: these any process can make."""
    options = plan.process
    torch.set_float32_matmul_precision(options.float32_matmul_precision)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch._dynamo.config.recompile_limit = options.dynamo_recompile_limit
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def _expand_segments() -> bool:
    """Whether the allocator's new segments are expandable now; those it has stay as they are.

    A setting is added to the ones in force: the allocator forgets what it is not told again."""
    torch.cuda.init()
    before = _allocator_settings()
    if before["expandable_segments"]:
        return True
    told = [text for text in (before.get(ALLOCATOR_VARIABLE, ""), EXPANDABLE) if text]
    with warnings.catch_warnings():
        # The one name that torch 2.11 and 2.13 share; 2.13 has it deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        torch.cuda.memory._set_allocator_settings(",".join(told))
    return bool(_allocator_settings()["expandable_segments"])


def _allocator_settings() -> dict[str, Any]:
    return dict(torch.cuda.memory._snapshot()["allocator_settings"])
