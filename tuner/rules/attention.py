"""Which attention backend runs where. Read from diffusers 0.42's models/attention_dispatch.py."""

from __future__ import annotations

from registry.plan import AttentionBackend
from tuner.rules.base import PlanSubject, Rule, below, is_cuda, is_within

CUDA_ONLY: frozenset[AttentionBackend] = frozenset(
    {
        *("_native_cudnn", "_native_efficient", "flash", "flash_varlen"),
        *("_flash_3", "sage", "xformers", "cudnn_fp8"),
    }
)
SIXTEEN_BIT_ONLY: frozenset[AttentionBackend] = frozenset(
    {"_native_cudnn", "_native_flash", "flash", "flash_varlen", "_flash_3", "sage", "cudnn_fp8"}
)
PACKAGES: dict[AttentionBackend, tuple[str, str]] = {
    "flash": ("flash-attn", ">=2.6.3"),
    "flash_varlen": ("flash-attn", ">=2.6.3"),
    "_flash_3": ("flash-attn-3", ">=3.0.0b1"),
    "sage": ("sageattention", ">=2.1.1"),
    "xformers": ("xformers", ">=0.0.29"),
    "cudnn_fp8": ("nvidia-cudnn-frontend", ">=1.15"),
}
UNMASKED_ONLY: frozenset[AttentionBackend] = frozenset(
    {"_native_flash", "flash", "_flash_3", "sage", "cudnn_fp8"}
)
FUSED_KERNEL_CAPABILITY = (8, 0)
HOPPER = 9


def _backend(subject: PlanSubject) -> AttentionBackend:
    return subject.plan.pipeline.attention_backend


def _reaches_no_processor(subject: PlanSubject) -> bool:
    return _backend(subject) != "default" and not (
        subject.inventory.denoiser.supports_attention_backend
    )


def _needs_cuda(subject: PlanSubject) -> bool:
    return _backend(subject) in CUDA_ONLY and not is_cuda(subject.environment)


def _gpu_too_old(subject: PlanSubject) -> bool:
    return _backend(subject) in SIXTEEN_BIT_ONLY and below(
        subject.environment, FUSED_KERNEL_CAPABILITY
    )


def _needs_sixteen_bits(subject: PlanSubject) -> bool:
    is_wide = subject.plan.pipeline.dtype == "float32"
    return is_wide and is_cuda(subject.environment) and _backend(subject) in SIXTEEN_BIT_ONLY


def _lacks_package(subject: PlanSubject) -> bool:
    wanted = PACKAGES.get(_backend(subject))
    if wanted is None:
        return False
    name, versions = wanted
    installed = {
        key.replace("_", "-").lower(): version
        for key, version in subject.environment.runtime.attention_packages.items()
    }
    return not is_within(installed.get(name), versions)


def _takes_no_mask(subject: PlanSubject) -> bool:
    inventory = subject.inventory
    activities = (profile.activity(inventory.denoiser.name) for profile in inventory.profiles)
    is_masked = any(found is not None and found.masked_attention for found in activities)
    return _backend(subject) in UNMASKED_ONLY and is_masked


def _is_flash_3_off_hopper(subject: PlanSubject) -> bool:
    own = subject.environment.hardware.compute_capability
    return _backend(subject) == "_flash_3" and own is not None and own[0] != HOPPER


def _is_float8_off_hopper(subject: PlanSubject) -> bool:
    own = subject.environment.hardware.compute_capability
    return _backend(subject) == "cudnn_fp8" and own is not None and own[0] != HOPPER


def _stores_all_scores(subject: PlanSubject) -> bool:
    return _backend(subject) == "_native_math"


def _is_second_to_flash(subject: PlanSubject) -> bool:
    is_efficient = _backend(subject) == "_native_efficient"
    has_flash = is_cuda(subject.environment) and not below(
        subject.environment, FUSED_KERNEL_CAPABILITY
    )
    return is_efficient and has_flash and subject.plan.pipeline.dtype != "float32"


def _is_the_default_on_cpu(subject: PlanSubject) -> bool:
    return _backend(subject) == "_native_flash" and not is_cuda(subject.environment)


RULES: tuple[Rule[PlanSubject], ...] = (
    Rule(
        "attention-backend-unreachable",
        "impossible",
        "this model's attention processors do not take a backend: the choice would reach none",
        "diffusers ModelMixin.set_attention_backend; tests/tuner/test_rules.py",
        _reaches_no_processor,
        {"diffusers": "<0.43"},
    ),
    Rule(
        "attention-backend-cuda",
        "impossible",
        "this attention backend needs an NVIDIA GPU",
        "tests/tuner/test_rules.py",
        _needs_cuda,
    ),
    Rule(
        "attention-backend-capability",
        "impossible",
        "this attention backend needs a GPU of compute capability 8.0 or newer",
        "docs.pytorch.org scaled_dot_product_attention",
        _gpu_too_old,
    ),
    Rule(
        "attention-backend-dtype",
        "impossible",
        "this attention backend computes in bfloat16 or float16 only",
        "diffusers models/attention_dispatch.py",
        _needs_sixteen_bits,
    ),
    Rule(
        "attention-backend-package",
        "impossible",
        "this attention backend's package is not installed, or too old (flash-attn 2.6.3, "
        "flash-attn-3, sageattention 2.1.1, xformers 0.0.29, nvidia-cudnn-frontend 1.15)",
        "diffusers models/attention_dispatch.py; tests/tuner/test_rules.py",
        _lacks_package,
    ),
    Rule(
        "attention-backend-mask",
        "impossible",
        "this model masks its attention, and this attention backend takes no mask",
        "diffusers models/attention_dispatch.py; tests/tuner/test_rules.py",
        _takes_no_mask,
        {"diffusers": "<0.43"},
    ),
    Rule(
        "attention-flash-3-hopper",
        "impossible",
        "FlashAttention 3 is written for Hopper GPUs (compute capability 9.0)",
        "github.com/Dao-AILab/flash-attention",
        _is_flash_3_off_hopper,
    ),
    Rule(
        "attention-cudnn-fp8-hopper",
        "impossible",
        "cuDNN's float8 attention is known to run here on Hopper GPUs (compute capability 9.0): "
        "older ones have none, and on newer ones it takes another output type",
        "github.com/NVIDIA/cudnn-frontend docs/operations/Attention.md; "
        "tests/tuner/pipeline/test_gpu_float8.py",
        _is_float8_off_hopper,
    ),
    Rule(
        "attention-math",
        "useless",
        "unfused attention stores every score: slower and larger than any fused backend",
        "docs.pytorch.org scaled_dot_product_attention",
        _stores_all_scores,
    ),
    Rule(
        "attention-efficient",
        "useless",
        "the memory-efficient kernel is slower than flash attention, which this GPU runs",
        "docs.pytorch.org scaled_dot_product_attention",
        _is_second_to_flash,
    ),
    Rule(
        "attention-flash-on-cpu",
        "useless",
        "on a CPU torch takes its flash attention by default",
        "docs.pytorch.org scaled_dot_product_attention",
        _is_the_default_on_cpu,
    ),
)
