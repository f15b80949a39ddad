"""This machine as an `Environment`: which device, what it can do, what is installed.

torch is never imported and CUDA never opened, so the answer costs milliseconds and holds no
memory on the device. Workers describe themselves with the same code (`detect_environment`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

from registry.environment import Environment, Hardware, Runtime
from registry.errors import DeviceError
from tuner import host, installed
from tuner.config import Settings, load_settings
from tuner.gpu_choice import choice_notes, select_visible, visible_gpus
from tuner.nvml import Gpu, Nvml, NvmlUnavailable, open_nvml
from tuner.version import APPLY_ENGINE

CPU = "cpu"
CONTAINER_HINT = "This is a container: start it with the GPU passed through (--gpus all)."


@dataclass(frozen=True)
class Detection:
    """`device_index` is nvidia-smi's number of the GPU (None on a CPU, and for a MIG slice its
    GPU's); `device_uuid` names it to CUDA and to the lock. `foreign_bytes` are in use on the device
    by others right now. `problems` are things to mend; `notes` are choices made for the user.
    """

    environment: Environment
    device_index: int | None
    device_uuid: str | None
    foreign_bytes: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def device_key(self) -> str:
        """The name of the device's lock: its UUID, or "cpu"."""
        return self.device_uuid or CPU


def detect(
    gpu: str | None = None,
    *,
    nvml: Callable[[], Nvml] = open_nvml,
    settings: Settings | None = None,
    own_torch: bool = True,
) -> Detection:
    """The device to use and everything that matters about it.

    `gpu` is "cpu", an index or UUID as nvidia-smi shows them ("0:1" and "MIG-…" for slices), or a
    part of the name that fits one device; None takes the first that CUDA_VISIBLE_DEVICES leaves
    visible, and the CPU where there is none. `own_torch` False leaves this interpreter's torch
    out of the choice: another one runs the trials (`--python`).

    Raises InvalidInput for a `gpu` that is not there or fits several, DeviceError when the GPU
    asked for cannot be used.
    """
    settings = settings or load_settings()
    if gpu is not None and gpu.lower() == CPU:
        return _cpu_detection(settings)
    try:
        library = nvml()
        gpus = library.gpus()
        return _gpu_detection(gpu, gpus, library, settings, own_torch=own_torch)
    except NvmlUnavailable as error:
        return _without_nvml(gpu, error, settings)


def detect_environment(
    device_index: int | None,
    *,
    nvml: Callable[[], Nvml] = open_nvml,
    settings: Settings | None = None,
) -> Environment:
    """What a worker says of itself: CUDA device `device_index` as its process sees it (after
    CUDA_VISIBLE_DEVICES), or the CPU for None. Raises DeviceError."""
    settings = settings or load_settings()
    if device_index is None:
        return _cpu_environment(settings)
    try:
        library = nvml()
        visible, _ = visible_gpus(library.gpus(), settings.visible_devices)
        if device_index >= len(visible):
            raise DeviceError(f"CUDA device {device_index} is not there: {len(visible)} visible")
        return _gpu_environment(visible[device_index], library.driver_version())
    except NvmlUnavailable as error:
        raise DeviceError(error.message, hint=error.hint) from error


def _gpu_detection(
    gpu: str | None, gpus: tuple[Gpu, ...], library: Nvml, settings: Settings, *, own_torch: bool
) -> Detection:
    visible, problem = visible_gpus(gpus, settings.visible_devices)
    if gpu is not None:
        return _chosen(select_visible(gpu, gpus, visible), library, own_torch=own_torch)
    if not visible:
        nothing = problem or "the NVIDIA driver runs but shows no GPU"
        return _cpu_detection(settings, nothing)
    torch_problem = _torch_problem() if own_torch else None
    if torch_problem:
        return _cpu_detection(settings, f"{visible[0].label} is not used: {torch_problem}")
    return _on_gpu(visible[0], library, choice_notes(visible))


def _chosen(chosen: Gpu, library: Nvml, *, own_torch: bool) -> Detection:
    problem = _torch_problem() if own_torch else None
    if problem:
        raise DeviceError(
            f"GPU {chosen.label} cannot be used: {problem}",
            hint="Mend torch, or run on the processor with --gpu cpu.",
        )
    return _on_gpu(chosen, library, ())


def _on_gpu(chosen: Gpu, library: Nvml, notes: tuple[str, ...]) -> Detection:
    return Detection(
        environment=_gpu_environment(chosen, library.driver_version()),
        device_index=int(chosen.index.partition(":")[0]),
        device_uuid=chosen.uuid,
        foreign_bytes=library.used_bytes(chosen.uuid),
        notes=notes,
    )


def _cpu_detection(settings: Settings, *problems: str) -> Detection:
    return Detection(
        environment=_cpu_environment(settings),
        device_index=None,
        device_uuid=None,
        foreign_bytes=0,
        problems=problems,
    )


def _without_nvml(gpu: str | None, error: NvmlUnavailable, settings: Settings) -> Detection:
    """No driver and no NVIDIA card is a CPU machine in good order; anything else is told."""
    hint = f"{error.hint} {CONTAINER_HINT}" if host.in_container() else error.hint
    if gpu is not None:
        raise DeviceError(f"--gpu {gpu!r} cannot be used: {error.message}", hint=hint)
    if error.absent and not host.nvidia_gpu_on_bus():
        return _cpu_detection(settings)
    return _cpu_detection(settings, f"no GPU can be used: {error.message}. {hint}")


def _gpu_environment(gpu: Gpu, driver: str) -> Environment:
    hardware = Hardware(
        device="cuda",
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        vram_bytes=gpu.vram_bytes,
        multiprocessors=gpu.multiprocessors,
        sm_clock_mhz=gpu.sm_clock_mhz,
        memory_bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s,
        mig_profile=gpu.mig_profile,
        power_limit_w=gpu.power_limit_w,
        link_bandwidth_class=gpu.link_bandwidth_class,
        host_ram_bytes=host.ram_bytes(),
        cpu_model=host.cpu_model(),
        cpu_cores=host.cpu_cores(),
    )
    return Environment(hardware=hardware, runtime=_runtime(driver=driver))


def _cpu_environment(settings: Settings) -> Environment:
    model, ram_bytes = host.cpu_model(), host.ram_bytes()
    hardware = Hardware(
        device="cpu",
        name=model,
        vram_bytes=ram_bytes,
        host_ram_bytes=ram_bytes,
        cpu_model=model,
        cpu_cores=host.cpu_cores(),
    )
    runtime = _runtime(isa=host.cpu_isa(), compiler=host.compiler_version(settings.cxx))
    return Environment(hardware=hardware, runtime=runtime)


def _runtime(
    *, driver: str | None = None, isa: str | None = None, compiler: str | None = None
) -> Runtime:
    torch = installed.torch_build()
    cuda = torch.cuda if torch else None
    return Runtime(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=torch.version if torch else None,
        torchao=installed.package_version("torchao"),
        diffusers=installed.package_version("diffusers"),
        transformers=installed.package_version("transformers"),
        accelerate=installed.package_version("accelerate"),
        triton=installed.triton_version(),
        driver=driver,
        cuda=cuda,
        cudnn=installed.cudnn_version(cuda),
        attention_packages=installed.attention_packages(),
        cpu_isa=isa,
        compiler=compiler,
        apply_engine=APPLY_ENGINE,
    )


def _torch_problem() -> str | None:
    """Why this interpreter's torch cannot drive an NVIDIA GPU; None where it can or is missing."""
    torch = installed.torch_build()
    if torch is None or torch.cuda is not None:
        return None
    kind = "a ROCm build" if torch.hip else "a CPU build"
    return f"torch {torch.version} is {kind}; install a CUDA build (pytorch.org says which)"
