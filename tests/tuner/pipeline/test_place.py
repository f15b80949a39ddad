"""Placements: what hooks they leave, and that pictures stay the same. The CPU plays the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from registry.errors import InvalidPlan, PlanConflict
from registry.plan import (
    ComponentPlan,
    GroupOffload,
    ModelOffload,
    Placement,
    Plan,
    Quantization,
    ReleaseAfterUse,
    SequentialOffload,
)
from tests.tuner.pipeline.tiny import CPU, FLUX, SDXL, load, picture, plan
from tuner.pipeline.check import check_plan
from tuner.pipeline.place import pipeline_modules, place
from tuner.pipeline.release import release_after_use

META = torch.device("meta")
NAMES = ("transformer", "text_encoder", "text_encoder_2", "vae")
WHOLE = [ModelOffload(), SequentialOffload()]


def kind(placement: Placement) -> str:
    return placement.kind


def everywhere(placement: Placement, names: tuple[str, ...] = NAMES) -> Plan:
    return plan({name: ComponentPlan(placement=placement) for name in names})


def hooked(module: nn.Module) -> bool:
    layers = module.modules()
    return any(hasattr(item, "_hf_hook") or hasattr(item, "_diffusers_hook") for item in layers)


@pytest.fixture(scope="module")
def wanted() -> torch.Tensor:
    return picture(load(FLUX))


@pytest.mark.parametrize("placement", [ModelOffload(), GroupOffload(stream=False)], ids=kind)
def test_offloading_changes_no_picture(placement: Placement, wanted: torch.Tensor) -> None:
    pipe = load(FLUX)
    place(pipe, everywhere(placement).pipeline, CPU, NAMES)
    assert all(hooked(module) for module in pipeline_modules(pipe).values())
    assert torch.equal(picture(pipe), wanted)
    assert torch.equal(picture(pipe), wanted)


@pytest.mark.parametrize("granularity", ["leaf", "block"])
def test_group_offload_of_one_component(granularity: Any, wanted: torch.Tensor) -> None:
    pipe = load(FLUX)
    placement = GroupOffload(granularity=granularity, stream=False)
    place(pipe, everywhere(placement, ("transformer",)).pipeline, CPU, NAMES)
    assert [name for name, item in pipeline_modules(pipe).items() if hooked(item)] == [
        "transformer"
    ]
    assert torch.equal(picture(pipe), wanted)


@pytest.mark.parametrize("placement", WHOLE, ids=kind)
def test_a_component_the_plan_does_not_name_stays_resident(placement: Placement) -> None:
    """As a ControlNet of the app's, around a plan that offloads everything else."""
    pipe = load(FLUX)
    extra = AutoencoderKL.from_config(pipe.vae.config)
    pipe.register_modules(image_encoder=extra)
    place(pipe, everywhere(placement).pipeline, CPU, (*NAMES, "image_encoder"))
    assert not hooked(extra)
    assert all(hooked(getattr(pipe, name)) for name in NAMES)
    assert type(pipe)._exclude_from_cpu_offload == []
    assert "image_encoder" in type(pipe).model_cpu_offload_seq


@pytest.mark.parametrize("placement", WHOLE, ids=kind)
def test_a_part_of_a_pipeline_cannot_be_offloaded_whole(placement: Placement) -> None:
    pipe = load(FLUX)
    with pytest.raises(PlanConflict, match=r"is for all components of a pipeline; not free: vae"):
        place(
            pipe,
            everywhere(placement).pipeline,
            CPU,
            ("transformer", "text_encoder", "text_encoder_2"),
        )
    assert not any(hooked(module) for module in pipeline_modules(pipe).values())


@pytest.mark.parametrize("placement", WHOLE, ids=kind)
def test_whole_placements_are_not_mixed_with_others(placement: Placement) -> None:
    components = {name: ComponentPlan(placement=placement) for name in NAMES}
    mixed = plan({**components, "text_encoder_2": ComponentPlan(placement=ReleaseAfterUse())})
    pipe = load(FLUX)
    with pytest.raises(InvalidPlan, match=rf"{placement.kind} is for all.*text_encoder_2"):
        check_plan(mixed, pipe, pipeline_modules(pipe), torch.device("cuda"))


@pytest.mark.parametrize(
    "placement", [*WHOLE, GroupOffload(), GroupOffload(stream=False)], ids=kind
)
def test_offloading_to_a_cpu_has_no_meaning(placement: Placement) -> None:
    with pytest.raises(InvalidPlan, match=rf"vae is placed by {placement.kind}, which needs a GPU"):
        load(FLUX, everywhere(placement))


def test_a_vae_cannot_be_released_after_its_forward() -> None:
    with pytest.raises(InvalidPlan, match=r"vae is placed by release_after_use"):
        load(FLUX, everywhere(ReleaseAfterUse(), ("vae",)))


def tokens() -> torch.Tensor:
    return torch.zeros(1, 32, dtype=torch.long)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("scheme", ["none", "int8_weight_only"])
def test_released_weights_are_on_the_device_during_the_call_alone(
    component: str, scheme: Any
) -> None:
    part = ComponentPlan(quantization=Quantization(scheme=scheme))
    encoder = getattr(load(FLUX, plan({component: part})), component)
    before = {name: item.data_ptr() for name, item in encoder.named_parameters()}
    seen: set[torch.device] = set()
    for layer in encoder.modules():
        layer.register_forward_pre_hook(
            lambda module, _: seen.update(
                item.device for item in module._parameters.values() if item is not None
            )
        )
    release_after_use(encoder, META)
    with torch.no_grad():
        for _ in range(2):
            assert encoder(tokens())[0].device == META
    assert seen == {META}
    assert {item.device for item in encoder.parameters()} == {CPU}
    assert {item.device for item in encoder.buffers()} <= {CPU}
    assert {name: item.data_ptr() for name, item in encoder.named_parameters()} == before


def test_a_forward_that_raises_leaves_nothing_on_the_device() -> None:
    encoder = load(FLUX).text_encoder
    before = {name: item.data_ptr() for name, item in encoder.named_parameters()}
    release_after_use(encoder, META)
    last = list(encoder.modules())[-1]
    broken = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with torch.no_grad(), pytest.raises(MemoryError):
        encoder(tokens())
    assert {name: item.data_ptr() for name, item in encoder.named_parameters()} == before
    broken.remove()
    with torch.no_grad():
        assert encoder(tokens())[0].device == META


def test_tied_weights_travel_once() -> None:
    encoder = load(FLUX).text_encoder_2
    ties: list[bool] = []
    encoder.encoder.register_forward_pre_hook(
        lambda *_: ties.append(encoder.shared.weight is encoder.encoder.embed_tokens.weight)
    )
    release_after_use(encoder, META)
    with torch.no_grad():
        encoder(tokens())
    assert ties == [True]
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_weights_come_back_after_a_call_that_failed() -> None:
    encoder = load(FLUX).text_encoder
    release_after_use(encoder, META)
    with torch.no_grad():
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            encoder(torch.zeros(1, 4096, dtype=torch.long))
        encoder(tokens())
    assert {item.device for item in encoder.parameters()} == {CPU}


def test_released_encoders_make_the_same_pictures_twice() -> None:
    wanted = picture(load(SDXL))
    names = ("text_encoder", "text_encoder_2")
    pipe = load(SDXL, everywhere(ReleaseAfterUse(), names))
    assert torch.equal(picture(pipe), wanted)
    assert torch.equal(picture(pipe), wanted)
    other = picture(pipe, prompt="a blue square")
    assert torch.equal(other, picture(load(SDXL), prompt="a blue square"))
    assert not torch.equal(other, wanted)
