"""Which file of a component's folder holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from registry.errors import InvalidInput
from tuner.weight_files import WEIGHTS_FILE, weight_files


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor's name and file. Raises InvalidInput for files that cannot be read."""
    files = weight_files(folder)
    index = _index(files)
    if index is not None:
        return _indexed(index, {path.name: path for path in files})
    names: dict[str, Path] = {}
    for path in files:
        with open_weights(path) as opened:
            names |= dict.fromkeys(opened.keys(), path)
    return names


def open_weights(path: Path) -> safe_open:
    """An open file, its tensors on the CPU. Raises InvalidInput for a damaged one."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}", hint="Download or save the model again."
        ) from None


def _index(files: Iterable[Path]) -> Path | None:
    """The index of sharded files: only it says which shards belong together."""
    first = next(iter(files))
    found = WEIGHTS_FILE.fullmatch(first.name)
    if found is None or "-of-" not in first.name:
        return None
    middle = f".{found['variant']}" if found["variant"] else ""
    names = (
        f"{found['stem']}.safetensors.index{middle}.json",
        f"{found['stem']}{middle}.safetensors.index.json",
    )
    return next((first.parent / name for name in names if (first.parent / name).is_file()), None)


def _indexed(index: Path, files: dict[str, Path]) -> dict[str, Path]:
    try:
        mapping = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{index} is not an index of safetensors files") from None
    missing = sorted({str(name) for name in mapping.values()} - set(files))
    if missing:
        raise InvalidInput(
            f"{index} names files that are not there: {', '.join(missing)}",
            hint="The download is not complete.",
        )
    return {str(tensor): files[name] for tensor, name in mapping.items()}
