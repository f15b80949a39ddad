"""Where a component's weights may live. Read from diffusers 0.42's hooks/group_offloading.py."""

from __future__ import annotations

from registry.plan import GroupOffload, StreamedBlocks
from tuner.blocks import can_stream
from tuner.layers import has_block_groups
from tuner.rules.base import ComponentSubject, Rule, is_cuda


def _offloads_to_itself(subject: ComponentSubject) -> bool:
    return subject.offloaded and not is_cuda(subject.environment)


def _lacks_accelerate(subject: ComponentSubject) -> bool:
    needs = subject.choice.placement.kind in {"model_offload", "sequential_offload"}
    return needs and subject.environment.runtime.accelerate is None


def _streams_quantized(subject: ComponentSubject) -> bool:
    placement = subject.choice.placement
    return isinstance(placement, GroupOffload) and placement.stream and subject.quantized


def _waits_for_each_group(subject: ComponentSubject) -> bool:
    placement = subject.choice.placement
    return isinstance(placement, GroupOffload) and not placement.stream


def _is_sequential_quantized(subject: ComponentSubject) -> bool:
    return subject.choice.placement.kind == "sequential_offload" and subject.quantized


def _has_no_block_groups(subject: ComponentSubject) -> bool:
    placement = subject.choice.placement
    if not isinstance(placement, GroupOffload) or placement.granularity != "block":
        return False
    return not has_block_groups(subject.component)


def _has_nothing_to_stream(subject: ComponentSubject) -> bool:
    placement = subject.choice.placement
    return isinstance(placement, StreamedBlocks) and not can_stream(subject.component, placement)


def _releases_every_step(subject: ComponentSubject) -> bool:
    is_denoiser = subject.component.role == "denoiser"
    return is_denoiser and subject.choice.placement.kind == "release_after_use"


RULES: tuple[Rule[ComponentSubject], ...] = (
    Rule(
        "offload-accelerator",
        "impossible",
        "offloading moves weights between host and GPU; without a GPU they have nowhere to go",
        "diffusers pipelines/pipeline_utils.py; tests/tuner/test_rules.py",
        _offloads_to_itself,
    ),
    Rule(
        "offload-accelerate-missing",
        "impossible",
        "model and sequential offloading need the accelerate package, which is not installed",
        "diffusers pipelines/pipeline_utils.py",
        _lacks_accelerate,
    ),
    Rule(
        "group-stream-quantized",
        "impossible",
        "streamed group offloading leaves parts of quantized weights on the other device",
        "diffusers#13281, diffusers#14433",
        _streams_quantized,
        {"diffusers": "<0.43"},
    ),
    Rule(
        "group-without-stream",
        "useless",
        "without a stream every group is copied in, waited for and copied out again: 27 times "
        "slower than with one, 5 times slower than sequential offloading",
        "tests/tuner/test_cost_model.py",
        _waits_for_each_group,
    ),
    Rule(
        "sequential-quantized",
        "useless",
        "sequential offloading of quantized weights is slow, and broke between accelerate and "
        "torchao releases; streamed group offloading needs as little memory",
        "diffusers#10470, accelerate#3973",
        _is_sequential_quantized,
    ),
    Rule(
        "group-blocks",
        "useless",
        "block groups are a component's own lists of blocks; without one at its top level the "
        "whole component would move as a single group",
        "diffusers hooks/group_offloading.py; tests/tuner/test_rules.py",
        _has_no_block_groups,
    ),
    Rule(
        "stream-blocks",
        "impossible",
        "streaming needs more repeated blocks than fit in its slots beside the resident ones",
        "tests/tuner/pipeline/test_streaming.py",
        _has_nothing_to_stream,
    ),
    Rule(
        "release-denoiser",
        "useless",
        "the denoiser runs at every step: releasing it after each use would load it every time",
        "tests/tuner/test_rules.py",
        _releases_every_step,
    ),
)
