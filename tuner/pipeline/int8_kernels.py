"""torchao's tuner of int8 kernels, which plans leave off.

`TORCHAO_AUTOTUNER_ENABLE` sends the layers of int8 dynamic quantization to torchao's own Triton
kernel, whose block sizes it picks by time alone. Of its 960 choices those whose block of features
does not divide a layer's read past the end of a row and give wrong numbers (torchao 0.18,
kernel/intmm_triton.py: `EVEN_K=(K % 2 == 0)`), and nothing compares results. It keeps its choices
in a pickle that it loads by itself, and takes hundreds of compilations a layer. torchao's main
branch has removed it.
"""

from __future__ import annotations

import importlib

import torch

from registry.plan import Plan

MODULE = "torchao.kernel.intmm"
CONFLICT = (
    "torchao's int8 kernel tuner is on, which can pick kernels with wrong results: start "
    "without TORCHAO_AUTOTUNER_ENABLE"
)


def kernel_tuner_conflicts(plan: Plan, device: torch.device) -> tuple[str, ...]:
    """What stands against `plan` where this process has the tuner on: it was measured without.

    Workers never have it on: they start without its variables.
    """
    components = plan.pipeline.components.values()
    is_int8 = any("int8_dynamic" in item.quantization.schemes for item in components)
    if not is_int8 or device.type != "cuda" or not _is_on():
        return ()
    return (CONFLICT,)


def _is_on() -> bool:
    """torchao reads the variable once, as it is imported."""
    try:
        intmm = importlib.import_module(MODULE)
    except ModuleNotFoundError:
        return False
    return bool(getattr(intmm, "AUTOTUNER_ENABLE", False))
