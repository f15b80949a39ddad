"""One picture request as arguments of a diffusers pipeline call."""

from __future__ import annotations

import inspect
from typing import Any

from registry.workload import Shape


def call_arguments(pipe: Any, shape: Shape, prompts: list[str], steps: int) -> dict[str, Any]:
    """Keyword arguments for `pipe(...)`: `prompts` has `shape.batch_size` entries."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {
        "prompt": prompts,
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps,
    }
    if shape.frames > 1:
        arguments["num_frames"] = shape.frames
    if "max_sequence_length" in accepted:
        arguments["max_sequence_length"] = _text_tokens(pipe, shape)
    if not shape.guidance and "guidance_scale" in accepted:
        arguments["guidance_scale"] = 1.0
    return arguments


def _text_tokens(pipe: Any, shape: Shape) -> int:
    """The shape's own length, else the longest that pipeline and tokenizer both take."""
    if shape.text_tokens is not None:
        return shape.text_tokens
    default = int(inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default)
    last = next(
        (item for item in (_get(pipe, f"tokenizer_{n}") for n in (3, 2)) if item is not None),
        _get(pipe, "tokenizer"),
    )
    limit = getattr(last, "model_max_length", default)
    return min(default, int(limit))


def _get(pipe: Any, name: str) -> Any:
    return getattr(pipe, name, None)
