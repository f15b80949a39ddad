"""A hub cache made by hand: blobs named by their content, snapshots of links, refs as text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

HUB_ID = "someone/tiny"
COMMITS = ("1" * 40, "2" * 40)
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "safety_checker": [None, None],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
STEM = "diffusion_pytorch_model"


def commit(cache: Path, name: str, files: dict[str, bytes], branch: str | None = "main") -> Path:
    """Put one commit into the cache, and move the branch there. Its snapshot's folder."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / name
    for path, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(blob)
    if branch is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(name)
    return snapshot


def files(weights: bytes = b"first") -> dict[str, bytes]:
    """Of a small pipeline whose transformer holds these weights."""
    return {
        "model_index.json": json.dumps(INDEX).encode(),
        "scheduler/scheduler_config.json": b"{}",
        "transformer/config.json": b"{}",
        f"transformer/{STEM}.safetensors": weights,
        "vae/config.json": b"{}",
        f"vae/{STEM}.safetensors": b"vae",
    }
