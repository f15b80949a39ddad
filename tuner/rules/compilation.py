"""When torch.compile works, with what, and where it breaks against offloading."""

from __future__ import annotations

from registry.plan import CompileMode
from tuner.rules.base import ComponentSubject, Rule, below, is_cuda

GRAPH_MODES: frozenset[CompileMode] = frozenset({"reduce-overhead", "max-autotune"})
"""Modes in which Inductor captures CUDA graphs."""
TRITON_CAPABILITY = (7, 0)
TRITON_OPTIONS = frozenset(
    {
        *("coordinate_descent_tuning", "coordinate_descent_check_all_directions"),
        "max_autotune_pointwise",
    }
)


def _has_no_blocks(subject: ComponentSubject) -> bool:
    is_regional = subject.choice.compilation.scope == "regional"
    return is_regional and not subject.component.repeated_blocks


def _has_no_compiler(subject: ComponentSubject) -> bool:
    if not subject.compiled:
        return False
    runtime = subject.environment.runtime
    return (runtime.triton if is_cuda(subject.environment) else runtime.compiler) is None


def _is_too_old_for_triton(subject: ComponentSubject) -> bool:
    return subject.compiled and below(subject.environment, TRITON_CAPABILITY)


def _captures(subject: ComponentSubject) -> bool:
    own = subject.choice.compilation
    return own.mode in GRAPH_MODES or own.cuda_graph


def _captures_moving_weights(subject: ComponentSubject) -> bool:
    return _captures(subject) and subject.offloaded


def _captures_on_cpu(subject: ComponentSubject) -> bool:
    return _captures(subject) and not is_cuda(subject.environment)


def _tunes_triton_on_cpu(subject: ComponentSubject) -> bool:
    options = subject.choice.compilation.inductor_options
    return not is_cuda(subject.environment) and bool(TRITON_OPTIONS & options.keys())


def _is_fullgraph_with_hooks(subject: ComponentSubject) -> bool:
    hooked = subject.choice.placement.kind in {"group_offload", "sequential_offload"}
    return hooked and subject.choice.compilation.fullgraph


def _moves_compiled_quantized_weights(subject: ComponentSubject) -> bool:
    moved = subject.choice.placement.kind in {"model_offload", "release_after_use"}
    return moved and subject.compiled and subject.quantized


def _swaps_compiled_quantized_weights(subject: ComponentSubject) -> bool:
    is_grouped = subject.choice.placement.kind == "group_offload"
    return is_grouped and subject.compiled and subject.quantized


def _compiles_streaming_whole(subject: ComponentSubject) -> bool:
    is_streamed = subject.choice.placement.kind == "streamed_blocks"
    return is_streamed and subject.choice.compilation.scope == "whole"


def _is_compiled_sequential(subject: ComponentSubject) -> bool:
    return subject.compiled and subject.choice.placement.kind == "sequential_offload"


RULES: tuple[Rule[ComponentSubject], ...] = (
    Rule(
        "compile-regional-blocks",
        "impossible",
        "regional compilation needs repeated blocks that diffusers knows, and this model names "
        "none",
        "diffusers ModelMixin.compile_repeated_blocks; tests/tuner/test_rules.py",
        _has_no_blocks,
    ),
    Rule(
        "compile-compiler",
        "impossible",
        "torch.compile needs Triton on a GPU and a C++ compiler on a CPU; none was found",
        "docs.pytorch.org torch.compiler",
        _has_no_compiler,
    ),
    Rule(
        "compile-capability",
        "impossible",
        "torch.compile needs a GPU of compute capability 7.0 or newer",
        "docs.pytorch.org torch.compiler",
        _is_too_old_for_triton,
    ),
    Rule(
        "compile-graphs-offload",
        "impossible",
        "a captured CUDA graph reads weights at fixed addresses, and offloaded weights move",
        "diffusers#4399",
        _captures_moving_weights,
    ),
    Rule(
        "compile-graphs-cpu",
        "useless",
        "CUDA graphs do nothing on a CPU",
        "docs.pytorch.org torch.compile",
        _captures_on_cpu,
    ),
    Rule(
        "compile-tuning-cpu",
        "useless",
        "this option tunes Triton kernels, and a CPU has none: it runs as if unset",
        "torch/_inductor/runtime/triton_heuristics.py, coordinate_descent_tuner.py",
        _tunes_triton_on_cpu,
    ),
    Rule(
        "compile-fullgraph-hooks",
        "impossible",
        "this offloading runs hooks that torch.compile cannot trace, so one full graph is never "
        "reached",
        "diffusers hooks/group_offloading.py; tests/tuner/test_rules.py",
        _is_fullgraph_with_hooks,
    ),
    Rule(
        "compile-quantized-model-offload",
        "impossible",
        "a compiled component with quantized weights cannot be moved: compiled code holds on to "
        "the tensors that moving would replace",
        "diffusers#12704, ao#3632",
        _moves_compiled_quantized_weights,
    ),
    Rule(
        "compile-quantized-group-offload",
        "impossible",
        "group offloading swaps quantized weights, which compiled code holds on to",
        "ao#3632",
        _swaps_compiled_quantized_weights,
    ),
    Rule(
        "compile-streamed-whole",
        "impossible",
        "blocks that stream wait for their weights between compiled regions; one graph of the "
        "whole component has no such place",
        "tests/tuner/pipeline/test_streaming.py",
        _compiles_streaming_whole,
    ),
    Rule(
        "compile-sequential-offload",
        "useless",
        "sequential offloading moves every layer for its own call: the link sets the pace and "
        "compiled code breaks at each layer",
        "pytorch#150711",
        _is_compiled_sequential,
    ),
)
