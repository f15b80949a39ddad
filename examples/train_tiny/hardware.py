"""What differs between training on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Hardware:
    """A device; bf16 is used where it is fast, on a GPU."""

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Of the GPU, or "CPU"."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU"

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 matrix products and convolutions on a GPU, float32 otherwise."""
        return torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext()

    def adam(self, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        """AdamW, one kernel for all parameters on a GPU."""
        return torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=self.on_gpu
        )

    @staticmethod
    def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
        """The learning rate from now on."""
        for group in optimizer.param_groups:
            group["lr"] = rate


def hardware(name: str) -> Hardware:
    """`name` is "auto", "cpu" or a CUDA device. TF32 is allowed where bf16 is not used.

    Of attention's kernels, cuDNN's and the memory-efficient one are off: with them the denoiser's
    first backward pass ended in CUBLAS_STATUS_EXECUTION_FAILED (H200, torch 2.11.0+cu130).
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    return Hardware(torch.device(chosen))
