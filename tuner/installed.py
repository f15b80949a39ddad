"""What is installed in this interpreter, read from package metadata: nothing is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ATTENTION_PACKAGES = (
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "sageattention",
    "xformers",
    "nvidia-cudnn-frontend",
)
TRITON_PACKAGES = ("triton", "pytorch-triton", "triton-windows")


@dataclass(frozen=True)
class TorchBuild:
    """What `torch/version.py` says. `cuda` and `hip` are None in a build without them."""

    version: str
    cuda: str | None
    hip: str | None
    git_version: str | None

    @property
    def is_cpu_only(self) -> bool:
        return self.cuda is None and self.hip is None


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build() -> TorchBuild | None:
    """The installed torch, or None. Its version file is read as text: an import costs seconds."""
    file = _torch_version_file()
    if file is None:
        return None
    values = dict(_assignments(file.read_text()))
    version = values.get("__version__")
    if version is None:
        return None
    return TorchBuild(version, values.get("cuda"), values.get("hip"), values.get("git_version"))


def triton_version() -> str | None:
    return next(filter(None, map(package_version, TRITON_PACKAGES)), None)


def cudnn_version(cuda: str | None) -> str | None:
    """Of the wheel that a pip-installed torch links; None for a system cuDNN."""
    return package_version(f"nvidia-cudnn-cu{cuda.partition('.')[0]}") if cuda else None


def attention_packages() -> dict[str, str]:
    versions = {name: package_version(name) for name in ATTENTION_PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def _torch_version_file() -> Path | None:
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / "version.py").is_file():
            return file
    return None


def _assignments(source: str) -> Iterator[tuple[str, str | None]]:
    """Names given a string or None at the top level, annotated or not."""
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            if value.value is None or isinstance(value.value, str):
                yield target.id, value.value
