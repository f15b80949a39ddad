"""Which safetensors files of a component's folder hold its weights.

diffusers and transformers name them `STEM[.VARIANT][-00001-of-00003].safetensors`, with an index
beside shards. The plain files are read; where there are none, the only variant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from registry.errors import InvalidInput

STEMS = ("diffusion_pytorch_model", "model")
WEIGHTS_FILE = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors"
)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files to read, in order of name. Raises InvalidInput where there are none, or several
    variants and no plain files."""
    matches = [
        (found["variant"], path)
        for path in sorted(folder.glob("*.safetensors"))
        if (found := WEIGHTS_FILE.fullmatch(path.name))
    ]
    wanted = _variant(folder, {variant for variant, _ in matches})
    return tuple(path for variant, path in matches if variant == wanted)


def _variant(folder: Path, variants: set[str | None]) -> str | None:
    if None in variants:
        return None
    if len(variants) == 1:
        return variants.pop()
    if variants:
        names = ", ".join(sorted(str(variant) for variant in variants))
        raise InvalidInput(
            f"{folder} holds the variants {names} and no plain files",
            hint="Keep one variant's files in the folder.",
        )
    raise InvalidInput(
        f"{folder} holds no weights as .safetensors ({' or '.join(STEMS)})",
        hint="Pickled checkpoints are not read; save with `safe_serialization=True`.",
    )


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
