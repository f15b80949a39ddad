"""A local model folder of configs alone, for `--weights random`: Stable Diffusion 3.5 medium.

    python benchmarks/config_folder.py FOLDER
    python benchmarks/record_trials.py --model FOLDER --weights random …

The catalog has two families of full size; predictions are judged on a third one, whose 2.2 B
denoiser has other blocks. Nothing is downloaded, and no weights are written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import transformers

from tuner import catalog
from tuner.catalog import ComponentSpec
from tuner.pipeline.tokenizer import byte_tokenizer

PIPELINE = "StableDiffusion3Pipeline"
DENOISER: Mapping[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}


def components() -> dict[str, ComponentSpec]:
    """Those of FLUX and SDXL, which Stable Diffusion 3.5 shares, around its own denoiser."""
    flux, sdxl = catalog.entry("flux-dev").components, catalog.entry("sdxl").components
    projecting = {"class": "transformers.CLIPTextModelWithProjection"}
    scheduler = {"num_train_timesteps": 1000, "shift": 3.0}
    return {
        "transformer": _spec("diffusers.SD3Transformer2DModel", DENOISER),
        "text_encoder": _spec(projecting["class"], flux["text_encoder"].config),
        "text_encoder_2": sdxl["text_encoder_2"],
        "text_encoder_3": flux["text_encoder_2"],
        "vae": _spec(
            "diffusers.AutoencoderKL",
            {**flux["vae"].config, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        ),
        "tokenizer": flux["tokenizer"],
        "tokenizer_2": sdxl["tokenizer_2"],
        "tokenizer_3": flux["tokenizer_2"],
        "scheduler": _spec("diffusers.FlowMatchEulerDiscreteScheduler", scheduler),
    }


def _spec(class_name: str, config: Mapping[str, Any]) -> ComponentSpec:
    return ComponentSpec.model_validate({"class": class_name, "config": config})


def write_folder(folder: Path) -> None:
    """As a diffusers pipeline saves itself, without weights."""
    index: dict[str, Any] = {"_class_name": PIPELINE}
    for name, spec in components().items():
        index[name] = _write(spec, folder / name)
    _write_json(folder / "model_index.json", index)


def _write(spec: ComponentSpec, folder: Path) -> list[str]:
    """Library and class, as the index names them."""
    if spec.tokenizer is not None:
        tokenizer = byte_tokenizer(spec.tokenizer)
        tokenizer.save_pretrained(str(folder))
        return ["transformers", type(tokenizer).__name__]
    library, _, class_name = str(spec.class_name).partition(".")
    config = dict(spec.config)
    if library == "transformers":
        getattr(transformers, class_name).config_class(**config).save_pretrained(str(folder))
    else:
        is_scheduler = class_name.endswith("Scheduler")
        file_name = "scheduler_config.json" if is_scheduler else "config.json"
        _write_json(folder / file_name, {"_class_name": class_name, **config})
    return [library, class_name]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        click.echo((__doc__ or "").strip(), err=True)
        return 2
    write_folder(Path(arguments[0]))
    click.echo(f"{PIPELINE} in {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
