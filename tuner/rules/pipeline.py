"""Rules about the plan as a whole: dtype, VAE options, QKV fusion, names."""

from __future__ import annotations

from registry.inventory import ShapeProfile
from tuner.rules.base import ComponentSubject, PlanSubject, Rule, below

BFLOAT16_CAPABILITY = (8, 0)


def _lacks_bfloat16(subject: PlanSubject) -> bool:
    is_bfloat16 = subject.plan.pipeline.dtype == "bfloat16"
    return is_bfloat16 and below(subject.environment, BFLOAT16_CAPABILITY)


def _names_unknown_component(subject: PlanSubject) -> bool:
    known = {component.name for component in subject.inventory.components}
    return not known.issuperset(subject.plan.pipeline.components)


def _pads_too_long(subject: PlanSubject) -> bool:
    asked, longest = subject.plan.pipeline.text_tokens, subject.inventory.max_text_tokens
    return asked is not None and longest is not None and asked > longest


def _cannot_fuse(subject: PlanSubject) -> bool:
    return subject.plan.pipeline.fuse_qkv and not subject.inventory.denoiser.supports_qkv_fusion


def _fuses_joint_attention(subject: PlanSubject) -> bool:
    is_joint = subject.inventory.denoiser.class_name == "SD3Transformer2DModel"
    return subject.plan.pipeline.fuse_qkv and is_joint


def _cannot_tile(subject: PlanSubject) -> bool:
    vae = subject.inventory.vae
    return subject.plan.pipeline.vae.tiling and not (vae is not None and vae.supports_tiling)


def _cannot_slice(subject: PlanSubject) -> bool:
    vae = subject.inventory.vae
    return subject.plan.pipeline.vae.slicing and not (vae is not None and vae.supports_slicing)


def _tiles_for_nothing(subject: PlanSubject) -> bool:
    vae = subject.inventory.vae
    if not subject.plan.pipeline.vae.tiling or vae is None:
        return False
    known = [item for item in subject.inventory.profiles if item.tiled_vae is not None]
    return bool(known) and not any(_tiling_saves(profile, vae.name) for profile in known)


def _tiling_saves(profile: ShapeProfile, vae: str) -> bool:
    tiled, whole = profile.tiled_vae, profile.activity(vae)
    if tiled is None or whole is None:
        return False
    return tiled.activation_peak_bytes < whole.activation_peak_bytes


def _slices_one_picture(subject: PlanSubject) -> bool:
    profiles = subject.inventory.profiles
    alone = all(profile.shape.batch_size == 1 for profile in profiles)
    return subject.plan.pipeline.vae.slicing and bool(profiles) and alone


def _has_no_convolutions(subject: ComponentSubject) -> bool:
    return subject.choice.channels_last and not subject.component.has_convolutions


COMPONENT_RULES: tuple[Rule[ComponentSubject], ...] = (
    Rule(
        "channels-last-convolutions",
        "useless",
        "channels-last is a layout for convolutions, and this component has none",
        "docs.pytorch.org channels last tutorial",
        _has_no_convolutions,
    ),
)

RULES: tuple[Rule[PlanSubject], ...] = (
    Rule(
        "bfloat16-capability",
        "impossible",
        "bfloat16 needs a GPU of compute capability 8.0 or newer",
        "docs.nvidia.com CUDA C++ Programming Guide, arithmetic instructions",
        _lacks_bfloat16,
    ),
    Rule(
        "component-unknown",
        "impossible",
        "the plan says something about a component that this pipeline does not have",
        "tests/tuner/test_rules.py",
        _names_unknown_component,
    ),
    Rule(
        "text-tokens-length",
        "impossible",
        "the plan pads prompts to more tokens than this pipeline's text encoder takes",
        "tests/tuner/test_rules.py",
        _pads_too_long,
    ),
    Rule(
        "fuse-qkv-support",
        "impossible",
        "this denoiser has no QKV fusion",
        "diffusers models/attention.py",
        _cannot_fuse,
    ),
    Rule(
        "fuse-qkv-joint-attention",
        "impossible",
        "fused attention of Stable Diffusion 3 leaves out the norms of queries and keys, and fails "
        "where a block attends to the picture alone",
        "diffusers models/attention_processor.py, FusedJointAttnProcessor2_0",
        _fuses_joint_attention,
        {"diffusers": "<0.43"},
    ),
    Rule(
        "vae-tiling-support",
        "impossible",
        "this VAE cannot decode in tiles",
        "diffusers models/autoencoders",
        _cannot_tile,
    ),
    Rule(
        "vae-slicing-support",
        "impossible",
        "this VAE cannot decode one picture at a time",
        "diffusers models/autoencoders",
        _cannot_slice,
    ),
    Rule(
        "vae-tiling-small",
        "useless",
        "at these resolutions the VAE's tiles are as large as the picture",
        "tests/tuner/test_rules.py",
        _tiles_for_nothing,
    ),
    Rule(
        "vae-slicing-single",
        "useless",
        "slicing decodes a batch one picture at a time, and every batch here is one picture",
        "tests/tuner/test_rules.py",
        _slices_one_picture,
    ),
)
