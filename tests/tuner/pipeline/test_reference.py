"""What a reference keeps of a request, and what a plan scores against it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidInput
from registry.workload import Shape
from tests.tuner.pipeline.tiny import (
    CPU,
    DENOISER,
    FLUX,
    PROMPT,
    SDXL,
    SHAPE,
    WORKLOAD,
    load,
    plan,
    quantized,
)
from tuner.model_spec import ModelSpec
from tuner.pipeline.proof import QualityRejectedError, drawn_by, score, write_reference
from tuner.pipeline.reference import Capture, Reference, captured_steps, reference_path
from tuner.pipeline.request import Requests
from tuner.pipeline.scoring import CEILING_DB
from tuner.pipeline.timing import DeviceClock
from tuner.protocol import TrialJob


def requests_of(spec: ModelSpec, pipe: Any, **options: Any) -> Requests:
    settings: dict[str, Any] = {
        "prompts": (PROMPT,),
        "seeds": (0,),
        "workload": WORKLOAD,
        **options,
    }
    job = TrialJob(
        model=spec, plan=plan(), rung="pipeline", budget_bytes=1, compile_cache_dir="", **settings
    )
    return Requests(job, pipe, DeviceClock(CPU), lambda *_: None)


def scores_of(
    spec: ModelSpec, pipe: Any, folder: Path, *, pictures: bool = True
) -> dict[str, list[float]]:
    found, _ = score(
        requests_of(spec, pipe),
        pipe,
        getattr(pipe, DENOISER[spec.ref.name]),
        CPU,
        folder,
        lambda *_: None,
        pictures=pictures,
    )
    values: dict[str, list[float]] = {}
    for item in found:
        assert (item.prompt, item.seed, item.shape) == (PROMPT, 0, SHAPE)
        values.setdefault(item.metric, []).append(item.value)
    return values


@pytest.fixture(scope="module", params=[FLUX, SDXL], ids=["flux", "sdxl"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    found: ModelSpec = request.param
    return found


@pytest.fixture(scope="module")
def pipe(spec: ModelSpec) -> Any:
    return load(spec)


@pytest.fixture(scope="module")
def folder(spec: ModelSpec, pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the unquantized pipeline wrote its reference."""
    path = tmp_path_factory.mktemp("reference")
    write_reference(requests_of(spec, pipe), getattr(pipe, DENOISER[spec.ref.name]), path)
    return path


@pytest.mark.parametrize(
    ("steps", "kept"),
    [(1, (0,)), (2, (0, 1)), (4, (0, 1, 2, 3)), (5, (0, 1, 2, 3, 4)), (28, (0, 7, 14, 20, 27))],
)
def test_kept_steps_are_spread_from_first_to_last(steps: int, kept: tuple[int, ...]) -> None:
    assert captured_steps(steps) == kept


def test_every_request_has_a_file_of_its_own(tmp_path: Path) -> None:
    shapes = [
        SHAPE,
        SHAPE.model_copy(update={"guidance": False}),
        SHAPE.model_copy(update={"text_tokens": 16}),
        SHAPE.model_copy(update={"batch_size": 2}),
        SHAPE.model_copy(update={"frames": 2}),
        Shape(height=64, width=128),
    ]
    paths = {reference_path(tmp_path, shape, pair) for shape in shapes for pair in (0, 1)}
    assert len(paths) == 2 * len(shapes)
    heavier = SHAPE.model_copy(update={"weight": 2.0})
    assert reference_path(tmp_path, heavier, 0) == reference_path(tmp_path, SHAPE, 0)


def test_the_reference_repeats_its_own_trajectory(spec: ModelSpec, pipe: Any, folder: Path) -> None:
    scores = scores_of(spec, pipe, folder)
    assert scores["sqnr_db"] == [CEILING_DB] * 4
    assert scores["embedding_sqnr_db"] == [CEILING_DB]
    assert scores["psnr_db"] == [CEILING_DB]
    assert scores["ssim"] == pytest.approx([1.0])


def test_a_quantized_denoiser_scores_less(spec: ModelSpec, folder: Path) -> None:
    other = load(spec, quantized(DENOISER[spec.ref.name], "int8_weight_only"))
    scores = scores_of(spec, other, folder)
    assert all(15.0 < value < 60.0 for value in scores["sqnr_db"])
    assert scores["embedding_sqnr_db"] == [CEILING_DB]
    assert 15.0 < scores["psnr_db"][0] < 60.0
    assert 0.5 < scores["ssim"][0] < 1.0


def test_a_quantized_text_encoder_shows_in_the_embeddings(spec: ModelSpec, folder: Path) -> None:
    other = load(spec, quantized("text_encoder_2", "int8_weight_only"))
    scores = scores_of(spec, other, folder)
    assert 15.0 < scores["embedding_sqnr_db"][0] < 60.0
    assert scores["sqnr_db"] == [CEILING_DB] * 4


def test_pictures_that_were_timed_are_scored_and_not_drawn_again(
    spec: ModelSpec, pipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, pair = requests_of(spec, pipe), (PROMPT, 0)
    timed = {(SHAPE, pair): drawn_by(requests, requests.run(SHAPE, pair, "images"))}
    denoiser = getattr(pipe, DENOISER[spec.ref.name])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was drawn again")

    monkeypatch.setattr(requests, "run", refuse)
    found, _ = score(
        requests, pipe, denoiser, CPU, folder, lambda *_: None, pictures=True, timed=timed
    )
    assert {item.value for item in found if item.metric == "psnr_db"} == {CEILING_DB}


def test_the_denoiser_rung_scores_the_denoiser_alone(
    spec: ModelSpec, pipe: Any, folder: Path
) -> None:
    assert set(scores_of(spec, pipe, folder, pictures=False)) == {"sqnr_db"}


def test_nan_is_rejected(spec: ModelSpec, folder: Path) -> None:
    broken = load(spec)
    with torch.no_grad():
        next(getattr(broken, DENOISER[spec.ref.name]).parameters()).fill_(math.nan)
    with pytest.raises(QualityRejectedError, match=r"not finite"):
        scores_of(spec, broken, folder, pictures=False)


def test_a_reference_that_is_not_finite_is_never_written(spec: ModelSpec, tmp_path: Path) -> None:
    broken = load(spec)
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(math.nan)
    denoiser = getattr(broken, DENOISER[spec.ref.name])
    with pytest.raises(QualityRejectedError, match=r"reference picture holds NaN"):
        write_reference(requests_of(spec, broken), denoiser, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_a_reference_of_another_workload(spec: ModelSpec, pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no reference 64x64-\w+-0\.safetensors"):
        scores_of(spec, pipe, tmp_path)


class Echo(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        self.seen = (args, kwargs)
        return (kwargs["hidden"],)


def test_arguments_come_back_as_they_were(tmp_path: Path) -> None:
    """Nested dicts, lists, tuples, constants, a tensor given twice, one that is not contiguous."""
    tensor = torch.arange(6.0).reshape(2, 3).T
    kwargs = {
        "hidden": tensor,
        "again": tensor,
        "added": {"time_ids": torch.ones(2), "deep": {"flag": True, "none": None}},
        "residuals": [torch.zeros(1), (torch.ones(1, dtype=torch.int64), 2.5)],
        "empty": {},
        "return_dict": False,
        "scale": 3.5,
        "guidance": None,
    }
    echo, capture = Echo(), Capture(steps=1)
    with capture.watching(echo):
        echo(tensor, "positional", **kwargs)
    path = tmp_path / "deeper" / "reference.safetensors"
    capture.save(path, (torch.ones(1), None, torch.zeros(2)), torch.rand(1, 3, 2, 2))
    reference = Reference(path)
    args, found = reference.inputs(0, CPU)
    assert reference.steps() == [0]
    assert torch.equal(reference.output(0, CPU), tensor)
    assert isinstance(args, tuple)
    assert torch.equal(args[0], tensor)
    assert args[1] == "positional"
    assert _plain(found) == _plain(kwargs)
    assert {number: item.numel() for number, item in reference.embeddings(CPU).items()} == {
        0: 1,
        2: 2,
    }


def _plain(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return (str(item.dtype), item.tolist())
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(_plain(value) for value in item)
    return item


def test_inputs_are_kept_as_they_were_at_the_call(tmp_path: Path) -> None:
    """Pipelines change latents in place between steps."""
    hidden = torch.ones(2)
    echo, capture = Echo(), Capture(steps=1)
    with capture.watching(echo):
        echo(hidden=hidden)
    hidden.fill_(7.0)
    capture.save(tmp_path / "reference.safetensors", (), torch.zeros(1, 3, 2, 2))
    _, found = Reference(tmp_path / "reference.safetensors").inputs(0, CPU)
    assert found["hidden"].tolist() == [1.0, 1.0]
