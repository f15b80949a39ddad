"""The folder of configs is a whole model to the worker, of the size that the real one has."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.config_folder import main
from tuner.models import resolve_model
from tuner.pipeline.skeleton import build_skeleton


def test_a_model_of_full_size_is_built_from_its_configs(tmp_path: Path) -> None:
    folder = tmp_path / "sd35-medium"
    assert main([str(folder)]) == 0
    skeleton = build_skeleton(resolve_model(str(folder), weights="random"), torch.bfloat16)
    sizes = {
        name: sum(item.numel() for item in module.parameters())
        for name, module in skeleton.modules.items()
    }
    assert sizes["transformer"] == 2_243_171_520
    assert sizes["text_encoder_3"] == 4_762_310_656
    assert skeleton.pipeline().tokenizer_3("a cat")["input_ids"][-1] == 1


def test_without_a_folder_it_says_what_it_does() -> None:
    assert main([]) == 2
