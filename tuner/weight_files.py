"""Which safetensors files of a component's folder hold its weights, and what names their content.

diffusers and transformers name them `STEM[.VARIANT][-00001-of-00003].safetensors`, with an index
beside shards. The plain files are read; where there are none, the only variant.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from registry.digest import digest
from registry.errors import InvalidInput

STEMS = ("diffusion_pytorch_model", "model")
WEIGHTS_FILE = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?(-\d+-of-(?P<shards>\d+))?\.safetensors"
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


def weights_digest(folder: Path, components: Iterable[str]) -> str:
    """What names the weights of these components of a diffusers folder. Raises InvalidInput."""
    files = [path for name in sorted(components) for path in weight_files(folder / name)]
    return digest([[f"{path.parent.name}/{path.name}", _file_digest(path)] for path in files])


def _file_digest(path: Path) -> str:
    """SHA-256 of the content; the hub's cache already names its blobs by it."""
    blob = blob_digest(path)
    if blob is not None:
        return blob
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def blob_digest(path: Path) -> str | None:
    """The SHA-256 that a file of the hub's cache is named by; None for other files."""
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None
