"""Which attention kernels a denoiser, or one block of it, uses."""

from __future__ import annotations

from typing import Any

from torch import nn

from registry.plan import AttentionBackend


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
