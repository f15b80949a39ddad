"""cuDNN's float8 attention as one operator that torch.compile keeps whole, and as a backend of
diffusers.

Queries and keys are cast to float8 (e4m3) as they are: models that this reaches normalise them per
head, so that they lie between 2^-6 and 448, where e4m3 keeps its precision. Values have one scale,
by their largest; an average of values is no larger, so the result has the same one. The casts stand
outside of the operator, where Inductor makes them part of the kernels before and after it.
"""

from __future__ import annotations

import atexit
from functools import cache, lru_cache
from threading import Lock
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_VALUE = 1e-12
Layout = tuple[tuple[int, ...], tuple[int, ...]]
ONE_AT_A_TIME = Lock()
"""A device has one cuDNN handle, which is told a stream and then executes on it."""


@cache
def _graph(query: Layout, key: Layout, value: Layout, scale: float, device: int) -> Any:
    """A built cuDNN graph for one problem, with its tensors in the order of `_execute`. Layouts are
    shapes and strides as (batch, heads, tokens, width)."""
    import cudnn

    float8, float32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    with torch.cuda.device(device):
        graph = cudnn.pygraph(
            io_data_type=float8,
            intermediate_data_type=float32,
            compute_data_type=float32,
            handle=_handle(device),
        )
        inputs = [
            graph.tensor(name=name, dim=list(shape), stride=list(strides), data_type=float8)
            for name, (shape, strides) in zip("qkv", (query, key, value), strict=True)
        ]
        one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1], "data_type": float32}
        scales = [graph.tensor(name=name, **one) for name in ("dq", "dk", "dv", "ds", "s", "o")]
        result, _, *largest = graph.sdpa_fp8(
            *inputs, *scales, attn_scale=scale, generate_stats=False, name="attention"
        )
        batch, heads, tokens, _ = query[0]
        width = value[0][3]
        result.set_output(True).set_data_type(float8)
        result.set_dim([batch, heads, tokens, width])
        result.set_stride([tokens * heads * width, width, heads * width, 1])
        for item in largest:
            item.set_output(True).set_dim(one["dim"]).set_stride(one["stride"])
            item.set_data_type(float32)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
    return graph, (*inputs, *scales, result, *largest)


@lru_cache(maxsize=8)
def _handle(device: int) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@lru_cache(maxsize=8)
def _constants(device: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One, and the scale of probabilities, which are at most one, with its inverse."""
    one = torch.ones(1, device=torch.device("cuda", device))
    return one, one / LARGEST, one * LARGEST


@atexit.register
def _forget() -> None:
    """cuDNN's objects would be reported as leaked where they outlive its module."""
    _graph.cache_clear()
    _handle.cache_clear()


def _heads_first(tensor: torch.Tensor) -> Layout:
    """Of (batch, tokens, heads, width), as cuDNN counts them."""
    order = (0, 2, 1, 3)
    return tuple(tensor.shape[i] for i in order), tuple(tensor.stride(i) for i in order)


@torch.library.custom_op("tuner::cudnn_fp8_attention", mutates_args=(), device_types="cuda")
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    value_scale: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention over float8 tensors (batch, tokens, heads, width). `value_scale`, one float32, is
    what `value` was divided by; the float8 result is divided by it too."""
    import cudnn

    device = query.get_device()
    graph, tensors = _graph(
        _heads_first(query), _heads_first(key), _heads_first(value), scale, device
    )
    one, down, up = _constants(device)
    result = torch.empty((*query.shape[:3], value.shape[3]), device=query.device, dtype=FLOAT8)
    # What cuDNN would report of probabilities and result; nobody reads it.
    largest = torch.empty(2, device=query.device)
    workspace = torch.empty(
        max(1, graph.get_workspace_size()), device=query.device, dtype=torch.uint8
    )
    pointers = (query, key, value, one, one, value_scale, down, up, value_scale.reciprocal())
    handle, stream = _handle(device), torch.cuda.current_stream(query.device).cuda_stream
    given = dict(zip(tensors, (*pointers, result, largest[:1], largest[1:]), strict=True))
    with ONE_AT_A_TIME, torch.cuda.device(device):
        cudnn.set_stream(handle=handle, stream=stream)
        graph.execute(given, workspace, handle=handle)
    return result


@attend.register_fake
def _shape_of(
    query: torch.Tensor,
    _key: torch.Tensor,
    value: torch.Tensor,
    _value_scale: torch.Tensor,
    _scale: float,
) -> torch.Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]), dtype=FLOAT8)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """As diffusers calls a backend: (batch, tokens, heads, width) in, the same out, in the values'
    type; queries and keys may be float8 already. Raises
    ValueError for a mask, dropout or causal attention, which this does not offer."""
    if attn_mask is not None or dropout_p or is_causal:
        raise ValueError("cudnn_fp8 attention takes no mask, no dropout and no causal order")
    value_scale = value.abs().amax().float().clamp(min=SMALLEST_VALUE) / LARGEST
    result: torch.Tensor = attend(
        _float8(query),
        _float8(key),
        _float8(value.float() / value_scale),
        value_scale.reshape(1),
        query.shape[-1] ** -0.5 if scale is None else scale,
    )
    return (result.float() * value_scale).to(value.dtype)


def _float8(tensor: torch.Tensor) -> torch.Tensor:
    """What is float8 already, by whoever computed it, is left."""
    if tensor.dtype == FLOAT8:
        return tensor
    return tensor.clamp(-LARGEST, LARGEST).to(FLOAT8)


def backend_name() -> Any:
    """`attention` as a backend that diffusers knows. Its names are an enumeration, and a registry
    has the function of each: this adds one of the same type, which no enumeration lists."""
    name: Any = str.__new__(AttentionBackendName, "cudnn_fp8")
    name._name_, name._value_ = "CUDNN_FP8", "cudnn_fp8"
    _AttentionBackendRegistry.register(name)(attention)
    return name


def set_float8_attention(module: torch.nn.Module) -> None:
    """Of every attention inside whose processor takes a backend."""
    name = backend_name()
    if torch.cuda.is_available():
        # Now: a first call may be inside of a CUDA graph's memory, where nothing may stay.
        _constants(torch.cuda.current_device())
    for layer in module.modules():
        processor: Any = getattr(layer, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = name
