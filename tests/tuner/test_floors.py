from __future__ import annotations

import pytest

from registry.plan import ComponentPlan, GroupOffload, PipelineOptions, Plan
from tests.tuner.flux import ONE_PICTURE, REGIONAL, SQUARE, cpu, flux, h200, plan, shipped
from tuner.cost_model import CostModel
from tuner.floors import step_floors_ms
from tuner.kernels import WorkClass

Floors = dict[WorkClass, float]


def floors(*args: object, **options: object) -> Floors:
    chosen = plan(*args, **options)  # type: ignore[arg-type]
    return dict(step_floors_ms(flux(), h200(), chosen, SQUARE))


def test_the_floor_of_flux_on_an_h200_is_what_was_worked_out() -> None:
    """Measured there: 44.6 ms of linear layers, 29.4 of attention, 23 of everything else."""
    found = floors("float8_dynamic_row", light=True, compilation=REGIONAL)
    assert found["matmul"] == pytest.approx(44.6, rel=0.1)
    assert found["attention"] == pytest.approx(29.4, rel=0.1)
    assert found["elementwise"] == pytest.approx(23.0, rel=0.15)
    assert found.keys() == {"matmul", "attention", "elementwise"}


def test_a_plan_is_never_predicted_under_its_floor() -> None:
    for chosen in (plan(), plan("float8_dynamic_row", compilation=REGIONAL, backend="sage")):
        floor_ms = sum(step_floors_ms(flux(), h200(), chosen, SQUARE).values())
        exact = plan(chosen.pipeline.component("transformer").quantization.scheme)
        found = CostModel(flux(), h200().hardware).estimate(exact, ONE_PICTURE)
        assert floor_ms < found.step_ms


def test_the_floor_does_not_depend_on_the_attention_or_the_compilation_chosen() -> None:
    assert floors(backend="_native_math") == floors(compilation=REGIONAL, backend="_native_cudnn")


def test_quantizing_moves_the_floor_of_products() -> None:
    assert floors("float8_dynamic_row")["matmul"] < 0.7 * floors()["matmul"]


def test_streamed_weights_must_cross_the_link() -> None:
    found = floors(placement=GroupOffload())
    assert found["copies"] == pytest.approx(430, rel=0.05)
    assert "copies" not in floors()


def test_a_denoiser_with_convolutions_has_a_floor_for_them() -> None:
    chosen = Plan(pipeline=PipelineOptions(components={"unet": ComponentPlan()}))
    found = step_floors_ms(shipped("sdxl"), h200(), chosen, SQUARE)
    assert found["convolution"] > 0


def test_a_cpu_has_floors_too() -> None:
    tiny = shipped("tiny-flux")
    found = step_floors_ms(tiny, cpu(), plan(), tiny.profiles[0].shape)
    assert 0 < found["matmul"] < 1000
    assert "copies" not in found
