"""Plans that cover every option, and the scripts they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from registry.plan import (
    INDUCTOR_OPTIONS,
    AttentionBackend,
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    GroupOffload,
    ModelOffload,
    PipelineOptions,
    Placement,
    Plan,
    ProcessOptions,
    Quantization,
    ReleaseAfterUse,
    Scheme,
    SequentialOffload,
    StreamedBlocks,
    TaylorSeerCache,
    VaeOptions,
)
from registry.workload import Shape
from tuner import catalog
from tuner.export import diffusers_script
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model

SHAPE = Shape(height=64, width=64)
LARGE = Shape(height=1024, width=1024)
REVISION = "0ef5fff789c832c5c7f4e127f94c8b54bbcced44"
FLUX = resolve_model("flux-dev", revision=REVISION)
COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae")
SCHEMES: tuple[Scheme, ...] = (
    "int8_weight_only",
    "int8_dynamic",
    "float8_weight_only",
    "float8_dynamic_tensor",
    "float8_dynamic_row",
)
BACKENDS: tuple[AttentionBackend, ...] = ("_native_cudnn", "_native_flash", "flash", "sage")


def plan_of(process: ProcessOptions | None = None, **options: Any) -> Plan:
    """A plan with these pipeline options; without `components`, of a plain transformer."""
    options.setdefault("components", {"transformer": ComponentPlan()})
    return Plan(process=process or ProcessOptions(), pipeline=PipelineOptions(**options))


def denoiser(**choices: Any) -> Plan:
    return plan_of(components={"transformer": ComponentPlan(**choices)})


def everywhere(placement: Placement, names: tuple[str, ...] = COMPONENTS) -> Plan:
    return plan_of(components=dict.fromkeys(names, ComponentPlan(placement=placement)))


def script_of(plan: Plan, model: ModelSpec = FLUX, shape: Shape = SHAPE, **options: Any) -> str:
    known = {"pipeline_class": "FluxPipeline", "inventory": catalog.shipped_inventory("flux-dev")}
    return diffusers_script(plan, model=model, shape=shape, **{**known, **options})


FP8_PLAN = plan_of(
    ProcessOptions(expandable_segments=True, float32_matmul_precision="high"),
    components={
        "text_encoder_2": ComponentPlan(
            quantization=Quantization(scheme="float8_weight_only", min_features=1024),
            placement=ReleaseAfterUse(),
        ),
        "transformer": ComponentPlan(
            quantization=Quantization(
                scheme="float8_dynamic_row",
                skip=("*embed*", "norm*.linear", "norm_out*", "proj_out"),
                min_features=1024,
            ),
            compilation=Compilation(scope="regional", fullgraph=True),
        ),
        "vae": ComponentPlan(channels_last=True),
    },
    attention_backend="_native_cudnn",
    fuse_qkv=True,
    text_tokens=512,
)

ALL_OPTIONS = Compilation(scope="regional", inductor_options=dict.fromkeys(INDUCTOR_OPTIONS, True))


@dataclass(frozen=True)
class Case:
    """A plan, and texts its script must hold."""

    plan: Plan
    expected: tuple[str, ...]
    shape: Shape = SHAPE
    steps: int | None = None

    @property
    def script(self) -> str:
        return script_of(self.plan, shape=self.shape, steps=self.steps)


def _of_scheme(scheme: Scheme) -> Case:
    quantization = Quantization(scheme=scheme, skip=("*embed*",), min_features=8)
    expected = ("set_inductor_config=False", 'skip=("*embed*",)', "min_features=8")
    return Case(denoiser(quantization=quantization), expected)


def _of_backend(backend: AttentionBackend) -> Case:
    line = f'pipe.transformer.set_attention_backend("{backend}")'
    return Case(plan_of(attention_backend=backend), (line,))


PROCESS = ProcessOptions(
    expandable_segments=True,
    float32_matmul_precision="medium",
    cudnn_benchmark=True,
    dynamo_recompile_limit=64,
    threads=3,
)
MANY_SKIPS = Quantization(
    scheme="float8_dynamic_tensor",
    skip=tuple(f"*transformer_blocks.{number}.norm*" for number in range(9)),
)
RELEASED = ComponentPlan(
    placement=ReleaseAfterUse(), quantization=Quantization(scheme="int8_weight_only")
)
BLOCKS = GroupOffload(granularity="block", stream=False, blocks_per_group=2)
GROUPS = {
    "transformer": ComponentPlan(placement=GroupOffload()),
    "text_encoder_2": ComponentPlan(placement=BLOCKS),
}

CASES: dict[str, Case] = {
    "mixed": Case(
        denoiser(
            quantization=Quantization(
                scheme="mixed",
                layers={
                    "single_transformer_blocks.*.attn.to_q": "float8_dynamic_row",
                    "*.to_k": "int8_dynamic",
                },
                skip=("*embed*",),
                min_features=1024,
            ),
            placement=ModelOffload(),
        ),
        ("quantize_each(", '"*.to_k",', "PerRow()", "set_inductor_config=False", 'home="cpu"'),
    ),
    "plain": Case(plan_of(), ("pipe.to(DEVICE)", f'revision="{REVISION}"')),
    "dtype": Case(plan_of(dtype="float16"), ("dtype=torch.float16",)),
    "process": Case(
        plan_of(PROCESS),
        (
            'os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"',
            'torch.set_float32_matmul_precision("medium")',
            "torch.backends.cudnn.benchmark = True",
            "torch._dynamo.config.recompile_limit = 64",
            "torch.set_num_threads(3)",
        ),
    ),
    "fused": Case(plan_of(fuse_qkv=True), ("fuse_qkv(pipe.transformer)",)),
    **{scheme: _of_scheme(scheme) for scheme in SCHEMES},
    "many_skips": Case(
        denoiser(quantization=MANY_SKIPS),
        (
            "PerTensor()",
            "multiple_of=16",
            "left_alone=[(128, 128)]",
            '"*transformer_blocks.8.norm*",',
        ),
    ),
    **{backend: _of_backend(backend) for backend in BACKENDS},
    "channels_last": Case(
        plan_of(components={"vae": ComponentPlan(channels_last=True)}),
        ("pipe.vae.to(memory_format=torch.channels_last)",),
    ),
    "model_offload": Case(
        everywhere(ModelOffload()), ("pipe.enable_model_cpu_offload(device=DEVICE)",)
    ),
    "sequential_offload": Case(
        everywhere(SequentialOffload(), COMPONENTS[1:]),
        (
            "def keep_resident(pipe, *names):",
            'keep_resident(pipe, "text_encoder")',
            "pipe.enable_sequential_cpu_offload(device=DEVICE)",
        ),
    ),
    "group_offload": Case(
        plan_of(components=GROUPS),
        (
            'offload_type="leaf_level"',
            "use_stream=True",
            'offload_type="block_level"',
            "num_blocks_per_group=2",
            'on_host = {"text_encoder_2", "transformer"}',
        ),
    ),
    "streamed_blocks": Case(
        denoiser(
            placement=StreamedBlocks(resident_blocks=14, slots=3),
            quantization=Quantization(scheme="int8_weight_only"),
        ),
        (
            "def stream_blocks(",
            "class Lane:",
            "def streamed_blocks(",
            "import mmap",
            'home="cpu"',
            "pipe.transformer, torch.device(DEVICE), resident_blocks=14, slots=3",
        ),
    ),
    "release": Case(
        plan_of(components={"text_encoder_2": RELEASED}),
        (
            "class ReleaseAfterUse(ModelHook):",
            "add_hook_to_module(pipe.text_encoder_2, ReleaseAfterUse(DEVICE))",
            'home="cpu"',
            'name != "text_encoder_2"',
        ),
    ),
    "regional": Case(
        denoiser(compilation=Compilation(scope="regional", fullgraph=True)),
        ("pipe.transformer.compile_repeated_blocks(fullgraph=True)",),
    ),
    "whole": Case(
        denoiser(compilation=Compilation(scope="whole", mode="max-autotune", dynamic=False)),
        ('pipe.transformer.compile(dynamic=False, mode="max-autotune")',),
    ),
    "inductor_options": Case(
        denoiser(compilation=ALL_OPTIONS), tuple(f'"{name}": True' for name in INDUCTOR_OPTIONS)
    ),
    "vae": Case(
        plan_of(vae=VaeOptions(tiling=True, slicing=True)),
        ("pipe.vae.enable_tiling()", "pipe.vae.enable_slicing()"),
    ),
    "request": Case(
        plan_of(text_tokens=128),
        (
            "height=768",
            "width=512",
            "num_inference_steps=7",
            "max_sequence_length=128",
            "guidance_scale=1.0",
            "] * 3",
            "target.with_stem",
        ),
        Shape(height=768, width=512, batch_size=3, guidance=False),
        steps=7,
    ),
    "video": Case(
        plan_of(),
        ("num_frames=9", "export_to_gif(output.frames[0]", '"video.gif"'),
        Shape(height=64, width=64, frames=9),
    ),
    "fp8": Case(FP8_PLAN, ("num_inference_steps=28",), LARGE),
    "float8 at scale one and in attention, recorded": Case(
        plan_of(
            components={
                "transformer": ComponentPlan(
                    quantization=Quantization(scheme="float8_static_tensor", skip=("*embed*",)),
                    compilation=Compilation(scope="regional", fullgraph=True, cuda_graph=True),
                )
            },
            attention_backend="cudnn_fp8",
        ),
        (
            *("StaticFloat8Config()", "set_float8_attention(pipe.transformer)"),
            *("fuse_norm_rope(pipe.transformer, norm_rope)", "record(pipe.transformer, DEVICE)"),
            "nvidia-cudnn-frontend",
        ),
    ),
    "float8 at scale one and in attention, streamed": Case(
        plan_of(
            components={
                "transformer": ComponentPlan(
                    quantization=Quantization(scheme="float8_static_tensor", skip=("*embed*",)),
                    placement=StreamedBlocks(),
                    compilation=Compilation(scope="regional"),
                )
            },
            attention_backend="cudnn_fp8",
        ),
        ("stream_blocks(", "set_float8_attention(pipe.transformer)"),
    ),
    "first-block cache": Case(
        plan_of(
            components={
                "transformer": ComponentPlan(
                    compilation=Compilation(scope="regional", fullgraph=True)
                )
            },
            step_cache=FirstBlockCache(threshold=0.12),
        ),
        (
            *("FirstBlockCacheConfig(threshold=0.12)", "cache_steps(pipe, pipe.transformer"),
            "compile_forwards(pipe.transformer, fullgraph=True)",
        ),
    ),
    "taylorseer cache": Case(
        plan_of(step_cache=TaylorSeerCache(interval_steps=4)),
        ("cache_interval=4", "disable_cache_before_step=3", "torch.bfloat16", "use_lite_mode=True"),
    ),
    "recorded as it is": Case(
        plan_of(
            components={"transformer": ComponentPlan(compilation=Compilation(cuda_graph=True))}
        ),
        ("record(pipe.transformer, DEVICE)",),
    ),
}
