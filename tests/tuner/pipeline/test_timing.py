"""Requests and their parts, timed on the CPU's clock. No figure is held to a number of seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from registry.workload import Shape, Workload
from tests.tuner.pipeline.tiny import CPU, FLUX, PROMPT, SDXL, SHAPE, load, plan
from tuner.model_spec import ModelSpec
from tuner.pipeline.measuring import (
    WARM_STEPS,
    first_image_s,
    time_denoiser,
    time_requests,
    warm_up,
)
from tuner.pipeline.request import Requests, call_arguments
from tuner.pipeline.timing import DeviceClock, median_and_mad, run_request
from tuner.protocol import TrialJob

Report = list[tuple[str, int, int, str]]
WIDE = Shape(height=64, width=128)


@pytest.fixture(scope="module", params=[FLUX, SDXL], ids=["flux", "sdxl"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    found: ModelSpec = request.param
    return found


@pytest.fixture(scope="module")
def pipe(spec: ModelSpec) -> Any:
    return load(spec)


def requests_of(
    spec: ModelSpec, pipe: Any, seen: Report, *shapes: Shape, **options: Any
) -> Requests:
    settings: dict[str, Any] = {"prompts": (PROMPT,), "seeds": (0,), **options}
    job = TrialJob(
        model=spec,
        workload=Workload(shapes=shapes or (SHAPE,)),
        plan=plan(),
        rung="pipeline",
        budget_bytes=1,
        compile_cache_dir="",
        **settings,
    )
    return Requests(job, pipe, DeviceClock(CPU), lambda *item: seen.append(item))


def test_the_clock_runs_forward() -> None:
    clock = DeviceClock(CPU)
    start = clock.mark()
    sum(range(10_000))
    end = clock.mark()
    clock.wait()
    assert clock.elapsed_s(start, end) > 0.0
    assert clock.elapsed_s(start, end) == -clock.elapsed_s(end, start)


def test_a_request_and_its_parts(pipe: Any) -> None:
    seen: list[int] = []
    arguments = call_arguments(pipe, SHAPE, [PROMPT], 4)
    encode = pipe.encode_prompt
    times = run_request(pipe, DeviceClock(CPU), {**arguments, "output_type": "pt"}, seen.append)
    assert seen == [1, 2, 3, 4]
    assert len(times.step_ms) == 3
    assert all(gap > 0.0 for gap in times.step_ms)
    assert times.encode_s > 0.0
    assert times.decode_s > 0.0
    known = times.encode_s + times.decode_s + sum(times.step_ms) / 1000.0
    assert known <= times.latency_s
    assert times.images.shape == (1, 3, 64, 64)
    assert any(isinstance(item, torch.Tensor) for item in times.embeddings)
    assert pipe.encode_prompt == encode


def test_a_request_that_fails_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    encode = pipe.encode_prompt
    with pytest.raises(ValueError, match=r"prompt"):
        run_request(pipe, DeviceClock(CPU), {"prompt": 7}, lambda _: None)
    assert pipe.encode_prompt == encode


def test_one_step_has_no_gap(spec: ModelSpec, pipe: Any) -> None:
    """Turbo models: whole requests give no step time, so two steps are timed apart."""
    seen: Report = []
    requests = requests_of(spec, pipe, seen, steps=1)
    first = warm_up(requests, decode=True)
    (measured,) = time_requests(requests, first, 2, lambda *_: None)
    assert measured.steps == 1
    assert measured.step_ms > 0.0
    assert len(measured.latency_samples_s) == 2


def test_shapes_are_timed_in_turn(spec: ModelSpec, pipe: Any) -> None:
    seen: Report = []
    requests = requests_of(
        spec, pipe, seen, SHAPE, WIDE, steps=2, prompts=("a", "b"), seeds=(1, 2, 3)
    )
    assert requests.pairs == [("a", 1), ("b", 2), ("a", 3)]
    first = warm_up(requests, decode=True)
    assert [item[3] for item in seen if item[1] == 1] == [SHAPE.label, WIDE.label] * 2
    assert {item[0] for item in seen} == {"compile"}
    assert seen[0] == ("compile", 0, WARM_STEPS, SHAPE.label)
    seen.clear()
    pictures: list[tuple[int, ...]] = []
    measured = time_requests(
        requests, first, 2, lambda _, __, done: pictures.append(tuple(done.images.shape))
    )
    assert [item[3] for item in seen if item[1] == 1] == [SHAPE.label, WIDE.label] * 2
    assert pictures == [(1, 3, 64, 64), (1, 3, 64, 128)] * 2
    assert [item.shape for item in measured] == [SHAPE, WIDE]
    for item, call in zip(measured, first, strict=True):
        assert item.first_call_s == call.latency_s
        assert len(item.latency_samples_s) == 2
        assert item.latency_s is not None
        assert min(item.latency_samples_s) <= item.latency_s <= max(item.latency_samples_s)
        assert item.encode_s is not None
        assert item.decode_s is not None


def test_the_denoiser_rung_leaves_pictures_undecoded(
    spec: ModelSpec, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(pipe.vae, "decode", refuse)
    requests = requests_of(spec, pipe, [], steps=50)
    (measured,) = time_denoiser(requests, warm_up(requests, decode=False), 3)
    assert measured.steps == 3
    assert measured.step_ms > 0.0
    assert measured.latency_s is None
    assert measured.latency_samples_s == ()


def test_the_first_image_counts_the_steps_that_the_first_request_left_out(
    spec: ModelSpec, pipe: Any
) -> None:
    requests = requests_of(spec, pipe, [], steps=2)
    first = warm_up(requests, decode=True)
    (measured,) = time_requests(requests, first, 1, lambda *_: None)
    assert first_image_s(first[0], measured, WARM_STEPS) == first[0].latency_s
    longer = first_image_s(first[0], measured, WARM_STEPS + 10)
    assert longer == pytest.approx(first[0].latency_s + measured.step_ms / 100.0)


def test_steps_are_the_jobs_or_the_catalogs_or_the_pipelines(pipe: Any, spec: ModelSpec) -> None:
    assert requests_of(spec, pipe, [], steps=7).steps == 7
    assert requests_of(spec, pipe, []).steps == 4
    local = spec.model_copy(update={"catalog": None})
    assert requests_of(local, pipe, []).steps == {"tiny-flux": 28, "tiny-sdxl": 50}[spec.ref.name]


def test_arguments_of_a_request() -> None:
    flux, sdxl = load(FLUX), load(SDXL)
    shape = Shape(height=32, width=64, batch_size=2, guidance=False)
    assert call_arguments(flux, shape, ["a", "b"], 3) == {
        "prompt": ["a", "b"],
        "height": 32,
        "width": 64,
        "num_inference_steps": 3,
        "max_sequence_length": 32,
        "guidance_scale": 1.0,
    }
    assert "max_sequence_length" not in call_arguments(sdxl, shape, ["a", "b"], 3)
    longer = SHAPE.model_copy(update={"text_tokens": 16})
    assert call_arguments(flux, longer, ["a"], 3)["max_sequence_length"] == 16
    assert "guidance_scale" not in call_arguments(flux, longer, ["a"], 3)


def test_median_and_its_deviation() -> None:
    assert median_and_mad([1.0, 2.0, 4.0, 100.0, 3.0]) == (3.0, 1.0)
    assert median_and_mad([2.0]) == (2.0, 0.0)
