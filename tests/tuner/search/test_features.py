from __future__ import annotations

import pytest

from registry.plan import (
    Compilation,
    ComponentPlan,
    GroupOffload,
    PipelineOptions,
    Plan,
    Resident,
    StreamedBlocks,
)
from tests.tuner.landscape import make_plan
from tuner.search.features import (
    complexity,
    denoiser_features,
    denoiser_picture,
    denoiser_signature,
    features,
    picture,
    placement_label,
    placements,
    trial_cost,
)

DENOISER = "transformer"
PLAIN = make_plan()
FAST = make_plan("float8_dynamic_row", "regional", "_native_cudnn")
WITH_TEXT = make_plan(
    "float8_dynamic_row", "regional", "_native_cudnn", text_scheme="int8_weight_only"
)


def compiled(**options: object) -> Plan:
    compilation = Compilation.model_validate(options)
    parts = {DENOISER: ComponentPlan(compilation=compilation)}
    return Plan(pipeline=PipelineOptions(components=parts))


def test_what_stands_around_the_denoiser_does_not_change_its_signature() -> None:
    assert denoiser_signature(FAST, DENOISER) == denoiser_signature(WITH_TEXT, DENOISER)
    assert features(FAST, DENOISER) != features(WITH_TEXT, DENOISER)


@pytest.mark.parametrize(
    "other",
    [
        make_plan("float8_dynamic_tensor", "regional", "_native_cudnn"),
        make_plan("float8_dynamic_row", "whole", "_native_cudnn"),
        make_plan("float8_dynamic_row", "regional", "_native_flash"),
        make_plan("float8_dynamic_row", "regional", "_native_cudnn", GroupOffload()),
        make_plan("float8_dynamic_row", "regional", "_native_cudnn", fuse_qkv=True),
    ],
)
def test_every_choice_that_changes_step_time_changes_the_signature(other: Plan) -> None:
    assert denoiser_signature(other, DENOISER) != denoiser_signature(FAST, DENOISER)
    assert len(denoiser_features(other, DENOISER) ^ denoiser_features(FAST, DENOISER)) == 2


def test_pictures_are_told_apart_by_quantization_alone() -> None:
    eager = make_plan("float8_dynamic_row")
    assert picture(eager) == picture(FAST) != picture(WITH_TEXT)
    assert denoiser_picture(FAST, DENOISER) == denoiser_picture(WITH_TEXT, DENOISER)
    assert picture(PLAIN) is None
    assert denoiser_picture(PLAIN, DENOISER) is None


def test_placements_are_told_apart() -> None:
    assert placement_label(GroupOffload()) == "group_offload/leaf/stream"
    assert placement_label(StreamedBlocks(resident_blocks=14)) == "streamed_blocks/14/2"
    assert placement_label(Resident()) == "resident"
    assert placements(make_plan(placement=GroupOffload())) != placements(PLAIN)
    assert placements(FAST) == placements(PLAIN)


def test_simpler_is_less_that_differs_from_the_defaults() -> None:
    whole = make_plan("float8_dynamic_row", "whole", "_native_cudnn")
    fused = make_plan("float8_dynamic_row", "regional", "_native_cudnn", fuse_qkv=True)

    assert complexity(PLAIN) == 0
    assert complexity(FAST) == 3
    assert complexity(fused) == complexity(whole) == complexity(WITH_TEXT) == 4


def test_details_of_a_choice_do_not_make_it_less_simple() -> None:
    assert complexity(compiled(scope="regional", fullgraph=True, dynamic=True)) == complexity(
        compiled(scope="regional")
    )


def test_whole_models_and_autotuning_take_longer_to_try() -> None:
    regional = trial_cost(compiled(scope="regional"))
    tuned = trial_cost(compiled(scope="regional", mode="max-autotune-no-cudagraphs"))
    gemm = trial_cost(compiled(scope="regional", inductor_options={"max_autotune_gemm": True}))

    whole = trial_cost(compiled(scope="whole"))
    assert whole > regional
    rounding = compiled(scope="whole", inductor_options={"emulate_precision_casts": True})
    assert trial_cost(rounding) == whole
    assert tuned == gemm > regional
    assert trial_cost(Plan(pipeline=PipelineOptions(components={}))) == regional
