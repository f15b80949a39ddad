"""What the hub's local cache holds of a model now. Nothing is asked of the hub.

The cache keeps `refs/BRANCH`, a text file with a commit, and `snapshots/COMMIT`, whose files are
links to blobs named by the SHA-256 of their content: so the weights that a worker would load are
named here without reading them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from registry.errors import InvalidInput
from tuner.model_spec import ModelSpec
from tuner.models import read_model_index
from tuner.weight_files import WEIGHTS_FILE, blob_digest, weight_files, weights_digest

COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class CachedWeights:
    """Weights of a hub model on this disk, `digest` as in `ModelInventory.weights`."""

    hub_id: str
    commit: str
    digest: str

    def __str__(self) -> str:
        return f"commit {self.commit[:12]} of {self.hub_id} in the hub's cache"


def cached_weights(model: ModelSpec, cache_dir: Path) -> CachedWeights | None:
    """None where the cache holds no complete snapshot of the model's revision, or one whose files
    it does not name by their content; and for a model that is not the hub's."""
    if model.hub_id is None or model.ref.weights != "pretrained":
        return None
    repository = cache_dir / f"models--{model.hub_id.replace('/', '--')}"
    commit = _commit(repository, model.ref.revision or DEFAULT_BRANCH)
    if commit is None:
        return None
    found = _digest(repository / "snapshots" / commit)
    return None if found is None else CachedWeights(model.hub_id, commit, found)


def _commit(repository: Path, revision: str) -> str | None:
    if COMMIT.fullmatch(revision):
        return revision
    try:
        text = (repository / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if COMMIT.fullmatch(text) else None


def _digest(snapshot: Path) -> str | None:
    try:
        index = read_model_index(snapshot)
        folders = [snapshot / name for name, item in index.items() if _is_component(item)]
        modules = [folder for folder in folders if _holds_module(folder)]
        if not modules or not all(_is_complete(folder) for folder in modules):
            return None
        return weights_digest(snapshot, [folder.name for folder in modules])
    except (InvalidInput, OSError):
        return None


def _is_component(value: object) -> bool:
    """An optional component that a model goes without has no class."""
    return isinstance(value, list) and None not in value


def _holds_module(folder: Path) -> bool:
    """Tokenizers and schedulers have configs of other names, or no weights."""
    return (folder / "config.json").is_file() or bool(list(folder.glob("*.safetensors")))


def _is_complete(folder: Path) -> bool:
    """Every shard is there, and named by its content."""
    files = weight_files(folder)
    if any(blob_digest(path) is None or not path.is_file() for path in files):
        return False
    found = WEIGHTS_FILE.fullmatch(files[0].name)
    shards = found["shards"] if found is not None else None
    return shards is None or len(files) == int(shards)
