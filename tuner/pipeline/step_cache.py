"""A step cache of diffusers on a denoiser: around what is compiled, empty before each request.

diffusers lays its hooks into a block's `forward`, and `compile_repeated_blocks` compiles what calls
that: each decision to leave a block out would break its graph. So with a step cache the blocks'
own forwards are compiled, and the hooks come around them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_forwards(module: nn.Module, **options: Any) -> None:
    """As `compile_repeated_blocks`, of what hooks wrap instead of what calls them."""
    repeated = frozenset(module._repeated_blocks)  # type: ignore[arg-type]
    for block in module.modules():
        if type(block).__name__ in repeated:
            block.forward = torch.compile(block.forward, **options)


def cache_steps(pipe: Any, denoiser: Any, config: Any) -> None:
    """Enable diffusers' cache. The pipeline empties it where a request ends well; one that was
    cancelled or failed would leave its last steps to the next, so it is emptied at the start too.
    """
    denoiser.enable_cache(config)
    check_inputs = pipe.check_inputs

    def emptied(*args: Any, **kwargs: Any) -> Any:
        denoiser._reset_stateful_cache()
        return check_inputs(*args, **kwargs)

    pipe.check_inputs = emptied
