"""Whether LPIPS can be computed here: what it needs is used where it lies, and never downloaded."""

from __future__ import annotations

from pathlib import Path

BACKBONE = "alexnet-owt-7be5be79.pth"
"""As torchvision names it; the name ends in the beginning of the content's SHA-256."""
SOURCE = f"https://download.pytorch.org/models/{BACKBONE}"


def backbone_path(hub_dir: Path) -> Path:
    return hub_dir / "checkpoints" / BACKBONE


def lacking(hub_dir: Path, torchvision: str | None) -> str | None:
    """Why LPIPS cannot be computed, None where it can. `hub_dir` is torch.hub's folder,
    `torchvision` the version that is installed."""
    if torchvision is None:
        return "torchvision is not installed"
    if not backbone_path(hub_dir).is_file():
        return f"no {BACKBONE} in {hub_dir / 'checkpoints'}; download it from {SOURCE}"
    return None
