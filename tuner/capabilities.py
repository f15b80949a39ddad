"""What a machine can and cannot run, and what is not installed: the findings of `tuner doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from registry.environment import Environment
from tuner.version import __version__

DISTRIBUTION = "diffusion-tuner"
BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
INT8_CAPABILITY = (7, 5)
OLDEST_CAPABILITY = (7, 5)
WIDE_CPU = ("avx512", "avx2")


@dataclass(frozen=True)
class Capability:
    """`reason` says why it is so, in words that fit after a colon."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Missing:
    """A package that is not installed, what cannot be done without it, and how to get it.

    `required` is False for what only widens the choice.
    """

    package: str
    reason: str
    command: str
    required: bool = True


def capabilities(environment: Environment) -> tuple[Capability, ...]:
    """Every finding, available or not, in a fixed order."""
    return (
        _gpu_generation(environment),
        _by_capability("bfloat16 compute", environment, BF16_CAPABILITY, _cpu_bf16(environment)),
        Capability("int8 weight-only", True, "runs on every device"),
        _by_capability("int8 dynamic", environment, INT8_CAPABILITY, "runs on the processor"),
        Capability("float8 weight-only", True, "runs on every device; computes in bfloat16"),
        _fp8_compute(environment),
        _compile(environment),
        _offload(environment),
        *_attention(environment),
    )


def missing(environment: Environment) -> tuple[Missing, ...]:
    """What `tuner run` needs and this interpreter lacks."""
    runtime = environment.runtime
    extra = f"pip install '{DISTRIBUTION}[run]=={__version__}'"
    needed = {
        "torch": (runtime.torch, "nothing can be loaded, measured or applied"),
        "diffusers": (runtime.diffusers, "no pipeline can be loaded"),
        "transformers": (runtime.transformers, "text encoders cannot be loaded"),
        "torchao": (runtime.torchao, "nothing can be quantized"),
        "accelerate": (runtime.accelerate, "models cannot be offloaded or loaded in parts"),
    }
    found = [Missing(name, why, extra) for name, (version, why) in needed.items() if not version]
    return (*found, *_missing_compilers(environment))


def _missing_compilers(environment: Environment) -> tuple[Missing, ...]:
    runtime = environment.runtime
    if environment.hardware.device == "cpu":
        if runtime.compiler is None:
            return (Missing("g++", "torch.compile needs a C++ compiler", "apt install g++", False),)
    elif runtime.torch and runtime.triton is None:
        return (Missing("triton", "torch.compile needs Triton", "pip install triton", False),)
    return ()


def _gpu_generation(environment: Environment) -> Capability:
    hardware = environment.hardware
    if hardware.compute_capability is None:
        return Capability("accelerator", False, f"runs on the processor, {hardware.name}")
    sm = _sm(hardware.compute_capability)
    if hardware.compute_capability < OLDEST_CAPABILITY:
        needed = _sm(OLDEST_CAPABILITY)
        return Capability("accelerator", False, f"{hardware.name} is {sm}; {needed} is needed")
    return Capability("accelerator", True, f"{hardware.name}, {sm}")


def _by_capability(
    name: str, environment: Environment, needed: tuple[int, int], on_cpu: str
) -> Capability:
    own = environment.hardware.compute_capability
    if own is None:
        return Capability(name, True, on_cpu)
    verb = "has" if own >= needed else "lacks"
    return Capability(name, own >= needed, f"{_sm(own)} {verb} it; needs {_sm(needed)} or newer")


def _cpu_bf16(environment: Environment) -> str:
    isa = environment.runtime.cpu_isa or ""
    return "in hardware" if "bf16" in isa else "emulated by the processor: exact but slow"


def _fp8_compute(environment: Environment) -> Capability:
    if environment.hardware.device == "cpu":
        return Capability("float8 compute", False, "needs an NVIDIA GPU of sm 8.9 or newer")
    return _by_capability("float8 compute", environment, FP8_CAPABILITY, "")


def _compile(environment: Environment) -> Capability:
    runtime = environment.runtime
    name = "torch.compile"
    if runtime.torch is None:
        return Capability(name, False, "torch is not installed")
    if environment.hardware.device == "cpu":
        why = runtime.compiler or "no C++ compiler was found (g++, c++, clang++ or $CXX)"
        return Capability(name, runtime.compiler is not None, why)
    why = f"Triton {runtime.triton}" if runtime.triton else "Triton is not installed"
    return Capability(name, runtime.triton is not None, why)


def _offload(environment: Environment) -> Capability:
    hardware = environment.hardware
    if hardware.device == "cpu":
        return Capability("offload", False, "weights are in host memory already")
    return Capability("offload", True, f"over {hardware.link_bandwidth_class}")


def _attention(environment: Environment) -> tuple[Capability, ...]:
    if environment.hardware.device == "cpu":
        return (Capability("attention kernels", True, "torch's own for the processor"),)
    packages = environment.runtime.attention_packages
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return (
        _by_capability("cuDNN and flash attention of torch", environment, BF16_CAPABILITY, ""),
        Capability("other attention packages", bool(packages), listed or "none installed"),
    )


def _sm(capability: tuple[int, int]) -> str:
    return f"sm {capability[0]}.{capability[1]}"
