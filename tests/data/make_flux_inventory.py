"""Writes flux-dev-inventory.json: FLUX.1-dev counted on the meta device (needs torch, no weights).

Run from the checkout: `python tests/data/make_flux_inventory.py`.
"""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from registry.inventory import (
    ComponentActivity,
    ComponentInventory,
    LinearLayer,
    ModelInventory,
    RepeatedBlock,
    Role,
    ShapeProfile,
)
from registry.workload import Shape

HERE = Path(__file__).parent
CATALOG = HERE.parent.parent / "tuner" / "catalog" / "models" / "flux-dev.json"
MATMULS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze"),
    *("split", "chunk", "slice", "select", "detach", "alias", "unbind", "split_with_sizes"),
    *("_reshape_alias", "unflatten", "flatten", "as_strided", "empty", "empty_like"),
}


class Attention(TorchFunctionMode):
    """Counts attention as one fused kernel: its score matrix is never stored."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
        query, key = named["query"], named["key"]
        batch, heads, length, width = query.shape
        self.flops += 4 * batch * heads * length * key.shape[2] * width
        return torch.empty_like(query)


class Activity(TorchDispatchMode):
    """Counts bytes moved by element-wise work, FLOPs of convolutions and the peak of live bytes."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.elementwise_bytes = self.convolution_flops = 0
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        tensors = [item for item in _flat(out) if isinstance(item, torch.Tensor)]
        if name not in VIEWS and name not in MATMULS:
            inputs = [item for item in _flat((args, kwargs)) if isinstance(item, torch.Tensor)]
            self.elementwise_bytes += sum(map(_bytes, inputs)) + sum(map(_bytes, tensors))
        if name == "convolution":
            weight, result = args[1], tensors[0]
            self.convolution_flops += 2 * result.numel() * weight[0].numel()
        for tensor in tensors:
            self._track(tensor)
        return out

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen or key in self.weights:
            return
        size = storage.nbytes()
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for part in value.values() for item in _flat(part)]
    if isinstance(value, tuple | list):
        return [item for part in value for item in _flat(part)]
    return [value]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def component(name: str, role: Role, module: nn.Module, **traits: Any) -> ComponentInventory:
    linears = [
        (path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear)
    ]
    elements = sum(parameter.numel() for parameter in module.parameters())
    blocks = repeated_blocks(module)
    leaves = [layer for layer in module.modules() if not list(layer.children())]
    lists = [item for item in module.modules() if isinstance(item, nn.ModuleList)]
    members = [size(child) for item in lists for child in item]
    return ComponentInventory(
        name=name,
        class_name=type(module).__name__,
        role=role,
        elements=elements,
        other_elements=elements - sum(layer.weight.numel() for _, layer in linears),
        buffer_bytes=sum(map(_bytes, module.buffers())),
        linears=tuple(
            LinearLayer(
                name=path,
                in_features=layer.in_features,
                out_features=layer.out_features,
                bias=layer.bias is not None,
            )
            for path, layer in linears
        ),
        repeated_blocks=blocks,
        largest_leaf_elements=max(size(layer) for layer in leaves),
        largest_block_elements=max(members, default=0),
        **traits,
    )


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def repeated_blocks(module: nn.Module) -> tuple[RepeatedBlock, ...]:
    found: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, layer in module.named_modules():
        if type(layer).__name__ in (getattr(module, "_repeated_blocks", None) or ()):
            found.setdefault(type(layer).__name__, []).append((path, layer))
    return tuple(
        RepeatedBlock(
            class_name=kind,
            names=tuple(path for path, _ in members),
            weight_elements=size(members[0][1]),
        )
        for kind, members in found.items()
    )


def activity(
    name: str, module: nn.Module, inputs: dict[str, Any], method: str = "forward"
) -> ComponentActivity:
    rows: Counter[str] = Counter()
    hooks = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear):

            def count(layer: nn.Linear, args: Any, path: str = path) -> None:
                rows[path] += args[0].numel() // layer.in_features

            hooks.append(layer.register_forward_pre_hook(count))
    weights = {item.untyped_storage()._cdata for item in module.parameters()}
    weights |= {item.untyped_storage()._cdata for item in module.buffers()}
    attention, counted = Attention(), Activity(weights)
    for item in inputs.values():
        if isinstance(item, torch.Tensor):
            counted._track(item)
    with torch.no_grad(), attention, counted:
        getattr(module, method)(**inputs)
    for hook in hooks:
        hook.remove()
    layers = dict(module.named_modules())
    flops = sum(2 * count * layers[path].weight.numel() for path, count in rows.items())
    return ComponentActivity(
        component=name,
        calls=1,
        linear_flops=flops,
        convolution_flops=counted.convolution_flops,
        attention_flops=attention.flops,
        elementwise_bytes=counted.elementwise_bytes,
        activation_peak_bytes=counted.peak,
        linear_rows=dict(rows),
    )


def build() -> ModelInventory:
    import diffusers
    import transformers

    configs = json.loads(CATALOG.read_text())["components"]
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        denoiser: Any = diffusers.FluxTransformer2DModel(**configs["transformer"]["config"])
        vae: Any = diffusers.AutoencoderKL(**configs["vae"]["config"])
        clip = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**configs["text_encoder"]["config"])
        )
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(**configs["text_encoder_2"]["config"])
        )
        denoiser_inputs = {
            "hidden_states": torch.empty(1, 4096, 64),
            "encoder_hidden_states": torch.empty(1, 512, 4096),
            "pooled_projections": torch.empty(1, 768),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
            "img_ids": torch.empty(4096, 3),
            "txt_ids": torch.empty(512, 3),
        }
        activities = (
            activity("text_encoder", clip, {"input_ids": torch.empty(1, 77, dtype=torch.long)}),
            activity("text_encoder_2", t5, {"input_ids": torch.empty(1, 512, dtype=torch.long)}),
            activity("transformer", denoiser, denoiser_inputs),
            activity("vae", vae, {"z": torch.empty(1, 16, 128, 128)}, method="decode"),
        )
        vae.enable_tiling()
        tiled = activity("vae", vae, {"z": torch.empty(1, 16, 128, 128)}, method="decode")
    components = (
        component("text_encoder", "text_encoder", clip),
        component("text_encoder_2", "text_encoder", t5),
        component(
            "transformer",
            "denoiser",
            denoiser,
            supports_attention_backend=True,
            supports_qkv_fusion=True,
        ),
        component(
            "vae", "vae", vae, has_convolutions=True, supports_tiling=True, supports_slicing=True
        ),
    )
    return ModelInventory(
        pipeline_class="FluxPipeline",
        architecture="0" * 64,
        weights="1" * 64,
        components=components,
        profiles=(
            ShapeProfile(
                shape=Shape(height=1024, width=1024, guidance=False),
                activities=activities,
                tiled_vae=tiled,
            ),
        ),
        resolution_factor=16,
        default_steps=28,
        default_text_tokens=512,
        max_text_tokens=512,
        made_with={"diffusers": diffusers.__version__, "torch": "meta"},
    )


if __name__ == "__main__":
    written = json.dumps(build().model_dump(mode="json"), separators=(",", ":"))
    (HERE / "flux-dev-inventory.json").write_text(written + "\n")
