"""What is done to weights before they are placed: QKV fusion, then quantization."""

from __future__ import annotations

from importlib.resources import files

from registry.inventory import ModelInventory
from registry.plan import ComponentPlan, LayerScheme, Plan, Quantization
from tuner.export.options import denoisers
from tuner.export.source import (
    ARGUMENT_ROOM,
    Part,
    call,
    component,
    enclosed,
    literal,
    module_of,
    strings,
)
from tuner.layers import ACTIVATION_FLOOR, FLOAT8_PRODUCTS, TAKEN_FOR_BLOCK_SCALED

CONFIGS: dict[LayerScheme, tuple[str, str | None]] = {
    "int8_weight_only": ("Int8WeightOnlyConfig", None),
    "int8_dynamic": ("Int8DynamicActivationInt8WeightConfig", None),
    "float8_weight_only": ("Float8WeightOnlyConfig", None),
    "float8_dynamic_tensor": ("Float8DynamicActivationFloat8WeightConfig", "PerTensor"),
    "float8_dynamic_row": ("Float8DynamicActivationFloat8WeightConfig", "PerRow"),
}
"""torchao's config of each scheme, and its granularity."""
OWN_CONFIG = "StaticFloat8Config"
"""Of `float8_static_tensor`, whose class and tensor the script brings along."""

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
def quantize(
    component, config, *, skip=(), min_features=1, multiple_of=1, left_alone=(), home=DEVICE
):
    """Linear layers one by one on the device: only one of them is there unquantized at a time."""
    for name, layer in component.named_modules():
        if not isinstance(layer, nn.Linear) or any(fnmatchcase(name, part) for part in skip):
            continue
        sizes = tuple(layer.weight.shape)
        if min(sizes) < min_features or sizes in left_alone:
            continue
        if not any(size % multiple_of for size in sizes):
            quantize_(layer.to(DEVICE), config)
            layer.to(home)'''

QUANTIZE_EACH = '''\
def quantize_each(component, layers, *, skip=(), min_features=1, home=DEVICE):
    """Like `quantize`, each layer as the first pattern that matches its name says."""
    for name, layer in component.named_modules():
        if not isinstance(layer, nn.Linear) or any(fnmatchcase(name, part) for part in skip):
            continue
        chosen = [item for pattern, *item in layers if fnmatchcase(name, pattern)]
        sizes = tuple(layer.weight.shape)
        if not chosen or min(sizes) < min_features:
            continue
        config, multiple_of, *left_alone = chosen[0]
        if sizes not in left_alone and not any(size % multiple_of for size in sizes):
            quantize_(layer.to(DEVICE), config)
            layer.to(home)'''

ROW_ROOM = ARGUMENT_ROOM - 8

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
    schemes = {scheme for item in chosen.values() for scheme in item.quantization.schemes}
    used = sorted({name for scheme in schemes for name in CONFIGS.get(scheme, ()) if name})
    own = _static_float8() if "float8_static_tensor" in schemes else Part()
    imports = (
        ("fnmatch", "fnmatchcase"),
        ("torch", "nn"),
        *(("torchao.quantization", name) for name in ("quantize_", *used)),
        *own.imports,
    )
    lines = (REASON, *(_quantize(name, item) for name, item in chosen.items()))
    mixed = {item.quantization.scheme == "mixed" for item in chosen.values()}
    ways = {False: QUANTIZE, True: QUANTIZE_EACH}
    definitions = (*own.definitions, *(ways[item] for item in sorted(mixed)))
    return Part(lines, imports=imports, definitions=definitions)


def _static_float8() -> Part:
    file = files("tuner") / "pipeline" / "static_float8.py"
    return module_of(file.read_text(encoding="utf-8"))


def _quantize(name: str, plan: ComponentPlan) -> str:
    quantization = plan.quantization
    keywords = _layers(quantization)
    if plan.placement.kind != "resident":
        keywords["home"] = literal("cpu")
    if quantization.scheme == "mixed":
        return call("quantize_each", component(name), _patterns(quantization), **keywords)
    return call("quantize", component(name), _config(quantization.scheme), **keywords)


def _patterns(plan: Quantization) -> str:
    """Pairs in the order in which the engine asks them, each with what sizes must divide by."""
    rows = (
        enclosed("(", _row(pattern, plan.layers[pattern]), ")", room=ROW_ROOM)
        for pattern in plan.patterns
    )
    return enclosed("[", rows, "]", room=0)


def _row(pattern: str, scheme: LayerScheme) -> tuple[str, ...]:
    multiple = "16" if scheme in FLOAT8_PRODUCTS else "1"
    return literal(pattern), _config(scheme), multiple, *_left_alone(scheme)


def _left_alone(scheme: LayerScheme) -> tuple[str, ...]:
    """Shapes that the scheme takes for another kind's."""
    return (repr(TAKEN_FOR_BLOCK_SCALED),) if scheme == "float8_dynamic_tensor" else ()


def _layers(plan: Quantization) -> dict[str, str]:
    keywords: dict[str, str] = {}
    if plan.skip:
        keywords["skip"] = strings(plan.skip, room=ARGUMENT_ROOM)
    if plan.min_features > 1:
        keywords["min_features"] = literal(plan.min_features)
    if plan.scheme in FLOAT8_PRODUCTS:
        keywords["multiple_of"] = "16"
    if plan.scheme == "float8_dynamic_tensor":
        keywords["left_alone"] = f"[{TAKEN_FOR_BLOCK_SCALED}]"
    return keywords


def _config(scheme: LayerScheme) -> str:
    if scheme == "float8_static_tensor":
        return f"{OWN_CONFIG}()"
    class_name, granularity = CONFIGS[scheme]
    keywords = {"granularity": f"{granularity}()"} if granularity else {}
    if scheme.startswith("float8_dynamic"):
        keywords["activation_value_lb"] = repr(ACTIVATION_FLOOR)
    return call(class_name, **keywords, set_inductor_config="False")
