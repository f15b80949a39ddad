"""The machine a plan was proved on: what is fixed (`Hardware`) and what upgrades (`Runtime`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from registry.base import Frozen, FrozenMapping
from registry.digest import digest

DeviceKind = Literal["cuda", "cpu"]


class Hardware(Frozen):
    """One device and its host. The GPU's UUID stays out: two cards of one kind are one hardware.

    `link_bandwidth_class` is the host link by generation and lanes ("pcie5x16", "none" on a CPU),
    which decides the speed of offloading. A MIG slice is its own hardware: `mig_profile` names it
    and `vram_bytes` is the slice's.
    """

    device: DeviceKind
    name: str
    compute_capability: tuple[int, int] | None = None
    vram_bytes: int
    multiprocessors: int | None = None
    sm_clock_mhz: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    mig_profile: str | None = None
    power_limit_w: int | None = None
    link_bandwidth_class: str = "none"
    host_ram_bytes: int
    cpu_model: str
    cpu_cores: int

    @property
    def digest(self) -> str:
        return digest(self)


class Runtime(Frozen):
    """Every version that can change a plan's speed, memory, picture or compiled code.

    None means "not installed". `attention_packages` maps a package that provides attention
    kernels to its version. `compiler` and `cpu_isa` matter where Inductor generates C++.
    """

    python: str
    torch: str | None
    torchao: str | None
    diffusers: str | None
    transformers: str | None
    accelerate: str | None
    triton: str | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    attention_packages: FrozenMapping[str] = Field(default={}, validate_default=True)
    cpu_isa: str | None = None
    compiler: str | None = None
    apply_engine: int

    @property
    def digest(self) -> str:
        return digest(self)


class Environment(Frozen):
    hardware: Hardware
    runtime: Runtime
