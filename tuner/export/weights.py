"""What is done to weights before they are placed: QKV fusion, then quantization."""

from __future__ import annotations

from registry.inventory import ModelInventory
from registry.plan import ComponentPlan, Plan, Quantization, Scheme
from tuner.export.options import denoisers
from tuner.export.source import ARGUMENT_ROOM, Part, call, component, literal, strings

CONFIGS: dict[Scheme, tuple[str, str | None]] = {
    "int8_weight_only": ("Int8WeightOnlyConfig", None),
    "int8_dynamic": ("Int8DynamicActivationInt8WeightConfig", None),
    "float8_weight_only": ("Float8WeightOnlyConfig", None),
    "float8_dynamic_tensor": ("Float8DynamicActivationFloat8WeightConfig", "PerTensor"),
    "float8_dynamic_row": ("Float8DynamicActivationFloat8WeightConfig", "PerRow"),
}
"""torchao's config of each scheme, and its granularity."""

FUSED = """\
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}"""

FUSE_QKV = '''\
def fuse_qkv(component):
    """One projection in place of three; diffusers alone would keep the three beside it."""
    component.fuse_qkv_projections()
    for layer in component.modules():
        for fused, parts in FUSED.items():
            if getattr(layer, "fused_projections", False) and hasattr(layer, fused):
                for part in parts:
                    layer._modules.pop(part, None)'''

QUANTIZE = '''\
def quantize(component, config, *, skip=(), min_features=1, multiple_of=1, home=DEVICE):
    """Linear layers one by one on the device: only one of them is there unquantized at a time."""
    for name, layer in component.named_modules():
        if not isinstance(layer, nn.Linear) or any(fnmatchcase(name, part) for part in skip):
            continue
        sizes = layer.weight.shape
        if min(sizes) >= min_features and not any(size % multiple_of for size in sizes):
            quantize_(layer.to(DEVICE), config)
            layer.to(home)'''

ACTIVATION_FLOOR = "1e-12"
"""As in `tuner.pipeline.quantize`."""

REASON = "# torchao would otherwise rewrite Inductor's global settings: set_inductor_config=False."


def fused(plan: Plan, inventory: ModelInventory | None) -> Part:
    """QKV fusion of whatever offers it; a VAE's one attention layer is left."""
    if not plan.pipeline.fuse_qkv:
        return Part()
    names = denoisers(plan, inventory)
    if inventory is not None:
        names = tuple(item.name for item in inventory.components if item.supports_qkv_fusion)
    lines = tuple(f"fuse_qkv({component(name)})" for name in names)
    return Part(lines, definitions=(FUSED, FUSE_QKV)) if lines else Part()


def quantized(plan: Plan) -> Part:
    """Each component's linear layers under its scheme."""
    plans = plan.pipeline.components
    chosen = {name: item for name, item in plans.items() if item.quantization.scheme != "none"}
    if not chosen:
        return Part()
    configs = [CONFIGS[item.quantization.scheme] for item in chosen.values()]
    used = sorted({name for pair in configs for name in pair if name})
    imports = (
        ("fnmatch", "fnmatchcase"),
        ("torch", "nn"),
        *(("torchao.quantization", name) for name in ("quantize_", *used)),
    )
    lines = (REASON, *(_quantize(name, item) for name, item in chosen.items()))
    return Part(lines, imports=imports, definitions=(QUANTIZE,))


def _quantize(name: str, plan: ComponentPlan) -> str:
    layers = _layers(plan.quantization)
    if plan.placement.kind != "resident":
        layers["home"] = literal("cpu")
    return call("quantize", component(name), _config(plan.quantization.scheme), **layers)


def _layers(plan: Quantization) -> dict[str, str]:
    keywords: dict[str, str] = {}
    if plan.skip:
        keywords["skip"] = strings(plan.skip, room=ARGUMENT_ROOM)
    if plan.min_features > 1:
        keywords["min_features"] = literal(plan.min_features)
    if plan.scheme.startswith("float8_dynamic"):
        keywords["multiple_of"] = "16"
    return keywords


def _config(scheme: Scheme) -> str:
    class_name, granularity = CONFIGS[scheme]
    keywords = {"granularity": f"{granularity}()"} if granularity else {}
    if scheme.startswith("float8_dynamic"):
        keywords["activation_value_lb"] = ACTIVATION_FLOOR
    return call(class_name, **keywords, set_inductor_config="False")
