"""What takes one call each: process settings, attention, memory format, compilation, the VAE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from registry.errors import InvalidPlan
from registry.inventory import ModelInventory
from registry.plan import Compilation, Plan, ProcessOptions, TaylorSeerCache
from tuner.export.source import ARGUMENT_ROOM, Part, call, component, enclosed, literal, module_of

DENOISER_NAME = re.compile(r"(transformer|unet)(_\d+)?")
DEFAULTS = ProcessOptions()


def settings(options: ProcessOptions) -> Part:
    """Settings of the whole process. The allocator reads its own as torch is imported."""
    lines: list[str] = []
    early: tuple[str, ...] = ()
    if options.expandable_segments:
        early = ('os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"',)
    if options.float32_matmul_precision != DEFAULTS.float32_matmul_precision:
        precision = literal(options.float32_matmul_precision)
        lines += [f"torch.set_float32_matmul_precision({precision})"]
    if options.cudnn_benchmark:
        lines += ["torch.backends.cudnn.benchmark = True"]
    if options.dynamo_recompile_limit != DEFAULTS.dynamo_recompile_limit:
        limit = literal(options.dynamo_recompile_limit)
        lines += [f"torch._dynamo.config.recompile_limit = {limit}"]
    if options.threads is not None:
        lines += [f"torch.set_num_threads({literal(options.threads)})"]
    imports = (("os", ""),) if early else ()
    return Part(tuple(lines), imports=imports, early=early)


def denoisers(plan: Plan, inventory: ModelInventory | None) -> tuple[str, ...]:
    """Their component names. Raises InvalidPlan where neither inventory nor plan has one."""
    if inventory is not None:
        found = [item.name for item in inventory.components if item.role == "denoiser"]
    else:
        found = [name for name in plan.pipeline.components if DENOISER_NAME.fullmatch(name)]
    if not found:
        raise InvalidPlan(
            "the plan has an option for the denoiser, and none is known by name",
            hint="Name the transformer or unet in the plan's components, or give an inventory.",
        )
    return tuple(found)


def attention(plan: Plan, inventory: ModelInventory | None) -> Part:
    """The denoiser's attention backend."""
    backend = plan.pipeline.attention_backend
    if backend == "default":
        return Part()
    if backend == "cudnn_fp8":
        own = module_of(_engine("cudnn_fp8.py"))
        lines = (f"set_float8_attention({component(name)})" for name in denoisers(plan, inventory))
        return replace(own, lines=tuple(lines))
    method = f"set_attention_backend({literal(backend)})"
    return Part(tuple(f"{component(name)}.{method}" for name in denoisers(plan, inventory)))


def channels_last(plan: Plan) -> Part:
    """The memory format of components with convolutions."""
    chosen = (name for name, item in plan.pipeline.components.items() if item.channels_last)
    method = "to(memory_format=torch.channels_last)"
    return Part(tuple(f"{component(name)}.{method}" for name in chosen))


def compilation(plan: Plan, inventory: ModelInventory | None, *, fuses_norm_rope: bool) -> Part:
    """torch.compile, in place, of what the engine prepares for it. Nothing is traced before the
    first call. `fuses_norm_rope`: on a GPU, for FLUX's attention."""
    cached = denoisers(plan, inventory) if plan.pipeline.step_cache is not None else ()
    plans = {name: item.compilation for name, item in plan.pipeline.components.items()}
    compiled = {name: item for name, item in plans.items() if item.scope != "none"}
    recorded = [name for name, item in plans.items() if item.cuda_graph]
    if not compiled:
        return _recorded(recorded)
    parts = [module_of(_engine("gelu.py"))]
    if fuses_norm_rope:
        parts += [module_of(_engine(f"norm_rope{end}.py")) for end in ("_kernel", "")]
    prepare = ("without_tanh({})", *(("fuse_norm_rope({}, norm_rope)",) * fuses_norm_rope))
    lines = (
        line
        for name, item in compiled.items()
        for line in (
            *(one.format(component(name)) for one in prepare),
            _compile_forwards(name, item) if name in cached else _compile(name, item),
        )
    )
    graphs = _recorded(recorded)
    return Part(
        (*lines, *graphs.lines),
        imports=tuple(item for part in (*parts, graphs) for item in part.imports),
        definitions=tuple(item for part in (*parts, graphs) for item in part.definitions),
    )


def _recorded(names: Sequence[str]) -> Part:
    """CUDA graphs of what was compiled, or of what runs as it is."""
    if not names:
        return Part()
    lines = (f"record({component(name)}, DEVICE)" for name in names)
    return replace(module_of(_engine("graphs.py")), lines=tuple(lines))


def _engine(file: str) -> str:
    return (files("tuner") / "pipeline" / file).read_text(encoding="utf-8")


def _compile(name: str, plan: Compilation) -> str:
    method = "compile_repeated_blocks" if plan.scope == "regional" else "compile"
    return call(f"{component(name)}.{method}", **_arguments(plan))


def _compile_forwards(name: str, plan: Compilation) -> str:
    return call("compile_forwards", component(name), **_arguments(plan))


def _arguments(plan: Compilation) -> dict[str, str]:
    keywords: dict[str, str] = {}
    if plan.fullgraph:
        keywords["fullgraph"] = "True"
    if plan.dynamic is not None:
        keywords["dynamic"] = literal(plan.dynamic)
    if plan.inductor_options:
        options = plan.inductor_options.items()
        every = (f"{literal(option)}: {literal(value)}" for option, value in options)
        keywords["options"] = enclosed("{", every, "}", room=ARGUMENT_ROOM)
    elif plan.mode != "default":
        keywords["mode"] = literal(plan.mode)
    return keywords


def step_cache(plan: Plan, inventory: ModelInventory | None) -> Part:
    """The denoiser's step cache, around what is compiled."""
    cache = plan.pipeline.step_cache
    if cache is None:
        return Part()
    if isinstance(cache, TaylorSeerCache):
        name = "TaylorSeerCacheConfig"
        config = {
            "cache_interval": literal(cache.interval_steps),
            "disable_cache_before_step": literal(cache.warmup_steps),
            "max_order": literal(cache.order),
            "taylor_factors_dtype": f"torch.{plan.pipeline.dtype}",
            "use_lite_mode": "True",
        }
    else:
        name, config = "FirstBlockCacheConfig", {"threshold": literal(cache.threshold)}
    own = module_of(_engine("step_cache.py"))
    made = call(f"step_cache = {name}", **config)
    laid = (
        f"cache_steps(pipe, {component(one)}, step_cache)" for one in denoisers(plan, inventory)
    )
    return replace(own, lines=(made, *laid), imports=(*own.imports, ("diffusers", name)))


def vae(plan: Plan) -> Part:
    """Decoding in tiles, or one picture of a batch at a time."""
    options = {"tiling": plan.pipeline.vae.tiling, "slicing": plan.pipeline.vae.slicing}
    return Part(tuple(f"pipe.vae.enable_{name}()" for name, wanted in options.items() if wanted))
