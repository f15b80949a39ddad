"""Which attention kernels a denoiser, or one block of it, uses."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from registry.plan import AttentionBackend
from tuner.rules.attention import CUDA_ONLY


def set_attention(module: nn.Module, backend: AttentionBackend) -> None:
    """Of every attention inside. diffusers also makes the backend every other model's default; the
    context undoes that. Its method looks at nothing but the modules inside, so a block will do."""
    if backend == "cudnn_fp8":
        from tuner.pipeline.cudnn_fp8 import set_float8_attention

        set_float8_attention(module)
        return
    from diffusers import ModelMixin, attention_backend

    method: Any = ModelMixin.set_attention_backend
    with attention_backend(backend):
        method(module, backend)


def why_no_attention(backend: AttentionBackend, device: torch.device) -> str | None:
    """Why a backend does not run in this process, before anything is set: diffusers refuses a
    missing package as it is set, and a wrong device in the middle of a picture."""
    if device.type != "cuda" and backend in CUDA_ONLY:
        return "it needs an NVIDIA GPU"
    if backend == "cudnn_fp8":
        return None if importlib.util.find_spec("cudnn") else "nvidia-cudnn-frontend is missing"
    from diffusers.models import attention_dispatch

    try:
        attention_dispatch._check_attention_backend_requirements(
            attention_dispatch.AttentionBackendName(backend)
        )
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None
