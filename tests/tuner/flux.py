"""FLUX.1-dev as the prediction tests see it: its inventory, an H200, a CPU, a few plans."""

from __future__ import annotations

from functools import cache
from typing import Any

from registry.environment import Environment, Hardware, Runtime
from registry.inventory import ComponentInventory, ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    PipelineOptions,
    Placement,
    Plan,
    Quantization,
    Resident,
    Scheme,
    VaeOptions,
)
from registry.workload import Shape, Workload
from tuner.catalog import shipped_inventory
from tuner.choices import MODULATION_PATTERNS, SENSITIVE_PATTERNS

REGIONAL = Compilation(scope="regional", fullgraph=True)
SQUARE = Shape(height=1024, width=1024, guidance=False)
ONE_PICTURE = Workload(shapes=(SQUARE,))


@cache
def shipped(name: str) -> ModelInventory:
    """The inventory this release ships with a catalog model."""
    found = shipped_inventory(name)
    assert found is not None
    return found


def flux() -> ModelInventory:
    return shipped("flux-dev")


def with_component(inventory: ModelInventory, name: str, **changes: Any) -> ModelInventory:
    components = tuple(
        item.model_copy(update=changes) if item.name == name else item
        for item in inventory.components
    )
    return inventory.model_copy(update={"components": components})


def denoiser(**changes: Any) -> ModelInventory:
    """FLUX with its denoiser changed."""
    return with_component(flux(), "transformer", **changes)


def sdxl_like() -> ModelInventory:
    """A denoiser with convolutions that takes no attention backend."""
    return denoiser(has_convolutions=True, supports_attention_backend=False)


def hardware(**changes: Any) -> Hardware:
    values: dict[str, Any] = {
        "device": "cuda",
        "name": "NVIDIA H200",
        "compute_capability": (9, 0),
        "vram_bytes": 150_000_000_000,
        "multiprocessors": 132,
        "sm_clock_mhz": 1980,
        "memory_bandwidth_bytes_per_s": 4_800_000_000_000,
        "link_bandwidth_class": "pcie5x16",
        "host_ram_bytes": 256_000_000_000,
        "cpu_model": "some processor",
        "cpu_cores": 16,
    }
    return Hardware(**(values | changes))


def runtime(**changes: Any) -> Runtime:
    values: dict[str, Any] = {
        "python": "3.12",
        "torch": "2.11.0+cu130",
        "torchao": "0.18.0",
        "diffusers": "0.42.1",
        "transformers": "5.23.0",
        "accelerate": "1.15.0",
        "triton": "3.6.0",
        "driver": "580.65",
        "cuda": "13.0",
        "apply_engine": 1,
    }
    return Runtime(**(values | changes))


def h200(**changes: Any) -> Environment:
    """An H200; keywords change its runtime."""
    return Environment(hardware=hardware(), runtime=runtime(**changes))


def gpu(major: int, minor: int, **changes: Any) -> Environment:
    """Another GPU generation; keywords change its hardware."""
    own = hardware(name="a GPU", compute_capability=(major, minor), **changes)
    return Environment(hardware=own, runtime=runtime())


def cpu(isa: str = "avx512 avx512_bf16", **changes: Any) -> Environment:
    own = hardware(
        device="cpu",
        name="some processor",
        compute_capability=None,
        multiprocessors=None,
        sm_clock_mhz=None,
        memory_bandwidth_bytes_per_s=None,
        link_bandwidth_class="none",
        vram_bytes=128_000_000_000,
        host_ram_bytes=128_000_000_000,
        cpu_cores=2,
    )
    values = {"triton": None, "cuda": None, "driver": None, "compiler": "g++ 12", "cpu_isa": isa}
    return Environment(hardware=own, runtime=runtime(**(values | changes)))


def quantization(scheme: Scheme, *, light: bool = False) -> Quantization:
    if scheme == "none":
        return Quantization()
    skip = (*SENSITIVE_PATTERNS, *(MODULATION_PATTERNS if light else ()))
    return Quantization(scheme=scheme, skip=skip, min_features=1024)


def plan(
    scheme: Scheme = "none",
    *,
    light: bool = False,
    compilation: Compilation | None = None,
    backend: AttentionBackend = "default",
    placement: Placement | None = None,
    others: dict[str, ComponentPlan] | None = None,
    vae: VaeOptions | None = None,
    channels_last: bool = False,
    **options: Any,
) -> Plan:
    """A plan by its denoiser's choices."""
    own = ComponentPlan(
        quantization=quantization(scheme, light=light),
        compilation=compilation or Compilation(),
        placement=placement or Resident(),
        channels_last=channels_last,
    )
    return Plan(
        pipeline=PipelineOptions(
            components={"transformer": own, **(others or {})},
            attention_backend=backend,
            vae=vae or VaeOptions(),
            **options,
        )
    )


def everywhere(placement: Placement, inventory: ModelInventory | None = None) -> Plan:
    """Every component of an unquantized model at one placement."""
    components: tuple[ComponentInventory, ...] = (inventory or flux()).components
    choice = ComponentPlan(placement=placement)
    return Plan(pipeline=PipelineOptions(components={item.name: choice for item in components}))
