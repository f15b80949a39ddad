"""LPIPS by torchmetrics, on a backbone that lies in torch.hub's folder.

torchmetrics would have torchvision download the backbone and unpickle it freely; here it is only
read, its digest checked, by an unpickler that knows tensors alone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tuner.installed import package_version
from tuner.lpips import BACKBONE, backbone_path, lacking

SMALLEST_SIDE = 64
"""Pixels that AlexNet's strides need."""


class CannotScoreError(Exception):
    """LPIPS cannot be computed; the message says why."""


def lpips(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean distance of pictures in [0, 1], shape (batch, 3, height, width). Raises
    CannotScoreError."""
    if min(found.shape[-2:]) < SMALLEST_SIDE:
        raise CannotScoreError(f"pictures are under {SMALLEST_SIDE} pixels")
    with torch.no_grad():
        return float(_network()(found.clamp(0, 1), wanted.clamp(0, 1), normalize=True).mean())


@cache
def _network() -> Any:
    folder = Path(torch.hub.get_dir())
    if reason := lacking(folder, package_version("torchvision")):
        raise CannotScoreError(reason)
    weights = read_backbone(backbone_path(folder))
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex", pnet_rand=True)
    names = network.net.state_dict()
    network.net.load_state_dict({name: weights[_as_saved(name)] for name in names})
    return network


def _as_saved(name: str) -> str:
    """ "slice2.3.weight" is "features.3.weight" of the whole backbone."""
    return f"features.{name.partition('.')[2]}"


def read_backbone(path: Path) -> dict[str, torch.Tensor]:
    """Raises CannotScoreError for a file that is not the one of its name, or holds more than
    tensors."""
    content = path.read_bytes()
    wanted = BACKBONE.removesuffix(".pth").rpartition("-")[2]
    if not hashlib.sha256(content).hexdigest().startswith(wanted):
        raise CannotScoreError(f"{path} is damaged or another file")
    try:
        found: dict[str, torch.Tensor] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise CannotScoreError(f"{path} holds more than weights") from error
    return found
