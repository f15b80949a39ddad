"""What a machine can run, by generation, and what it lacks."""

from __future__ import annotations

from typing import Any

import pytest

from registry.environment import Environment
from tests.tuner.fake_worker import ENVIRONMENT
from tuner.capabilities import capabilities, missing


def gpu(capability: tuple[int, int] = (9, 0), **runtime: Any) -> Environment:
    values = {"torch": "2.11.0+cu130", "triton": "3.6.0", **runtime}
    return Environment(
        hardware=ENVIRONMENT.hardware.model_copy(
            update={
                "device": "cuda",
                "name": "a card",
                "compute_capability": capability,
                "link_bandwidth_class": "pcie4x16",
            }
        ),
        runtime=ENVIRONMENT.runtime.model_copy(update=values),
    )


def cpu(**runtime: Any) -> Environment:
    return ENVIRONMENT.model_copy(
        update={"runtime": ENVIRONMENT.runtime.model_copy(update=runtime)}
    )


def found(environment: Environment) -> dict[str, bool]:
    return {item.name: item.available for item in capabilities(environment)}


@pytest.mark.parametrize(
    ("capability", "accelerator", "bf16", "fp8"),
    [
        ((9, 0), True, True, True),
        ((8, 9), True, True, True),
        ((8, 6), True, True, False),
        ((7, 5), True, False, False),
        ((6, 1), False, False, False),
    ],
)
def test_generations(capability: tuple[int, int], accelerator: bool, bf16: bool, fp8: bool) -> None:
    abilities = found(gpu(capability))
    assert abilities["accelerator"] is accelerator
    assert abilities["bfloat16 compute"] is bf16
    assert abilities["float8 compute"] is fp8
    assert abilities["offload"] is True


def test_a_cpu() -> None:
    abilities = found(cpu(compiler="g++ 12", cpu_isa="avx512 avx512_bf16"))
    assert abilities["torch.compile"] is True
    assert abilities["int8 dynamic"] is True
    assert abilities["accelerator"] is abilities["float8 compute"] is abilities["offload"] is False


def test_compile_needs_its_compiler() -> None:
    assert found(cpu(compiler=None))["torch.compile"] is False
    assert found(gpu(triton=None))["torch.compile"] is False
    assert found(gpu())["torch.compile"] is True
    assert found(gpu(torch=None))["torch.compile"] is False


def test_every_finding_has_its_reason() -> None:
    for environment in (cpu(), gpu(), gpu((7, 5)), gpu(attention_packages={"xformers": "1"})):
        assert all(item.reason for item in capabilities(environment))


def test_what_is_missing_says_how_to_get_it() -> None:
    absent = {item.package: item for item in missing(cpu(torch=None, compiler=None))}
    assert set(absent) == {"torch", "torchao", "diffusers", "transformers", "accelerate", "g++"}
    assert "diffusion-tuner[run]==" in absent["torch"].command
    assert absent["torch"].required
    assert not absent["g++"].required


def test_nothing_is_missing() -> None:
    names = ("torchao", "diffusers", "transformers", "accelerate", "compiler")
    everything: dict[str, Any] = dict.fromkeys(names, "1")
    assert missing(cpu(**everything)) == ()
    assert missing(gpu(**everything)) == ()
    (triton,) = missing(gpu(**everything, triton=None))
    assert triton.package == "triton"
