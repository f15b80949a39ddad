"""Decibels of known noise, and what is refused to score."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.tuner.pipeline.tiny import PROMPT, SHAPE
from tuner.pipeline.reference import Capture, Reference
from tuner.pipeline.scoring import CEILING_DB, NotFiniteError, Scorer, sqnr_db


def noise_of(decibels: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(100_000, generator=generator)
    noise = torch.randn(100_000, generator=generator) * 10.0 ** (-decibels / 20.0)
    return signal, signal + noise


@pytest.mark.parametrize("decibels", [0.0, 20.0, 40.0, 60.0])
def test_known_noise_scores_what_it_is(decibels: float) -> None:
    assert sqnr_db(*noise_of(decibels)) == pytest.approx(decibels, abs=0.1)


def test_equal_tensors_score_the_ceiling() -> None:
    signal = torch.randn(10)
    assert sqnr_db(signal, signal.clone()) == CEILING_DB
    assert sqnr_db(signal.bfloat16(), signal.bfloat16()) == CEILING_DB
    assert sqnr_db(torch.zeros(4), torch.zeros(4)) == CEILING_DB
    assert sqnr_db(torch.zeros(4), torch.ones(4)) < -100.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_raise(bad: float) -> None:
    signal = torch.ones(3)
    with pytest.raises(NotFiniteError):
        sqnr_db(signal, torch.tensor([1.0, bad, 1.0]))
    with pytest.raises(NotFiniteError):
        sqnr_db(torch.tensor([1.0, bad, 1.0]), signal)


def scorer_of(image: torch.Tensor, tmp_path: Path) -> Scorer:
    capture = Capture(steps=1)
    capture.save(tmp_path / "reference.safetensors", (), image)
    return Scorer(Reference(tmp_path / "reference.safetensors"), SHAPE, PROMPT, 0)


def test_pictures_of_known_noise(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.full((1, 3, 64, 64), 0.5)
    found = image + torch.randn(image.shape, generator=generator) * 0.01
    values = {item.metric: item.value for item in scorer_of(image, tmp_path).picture(found)}
    assert values["psnr_db"] == pytest.approx(40.0, abs=0.2)
    assert values["ssim"] < 1.0


def test_a_picture_that_is_not_finite_raises(tmp_path: Path) -> None:
    image = torch.full((1, 3, 64, 64), 0.5)
    with pytest.raises(NotFiniteError, match=r"picture is not finite"):
        scorer_of(image, tmp_path).picture(image * math.nan)
