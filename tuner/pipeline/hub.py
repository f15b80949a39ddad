"""A model's snapshot from the hub: configs, tokenizers and the safetensors that are read."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from registry.errors import UnknownModel
from tuner.model_spec import ModelSpec
from tuner.models import read_model_index
from tuner.weight_files import STEMS, WEIGHTS_FILE

SMALL_FILES = ("*.json", "*.txt", "*.model")


def download(spec: ModelSpec) -> Path:
    """The snapshot's folder, with no component the pipeline does not name, no variant where plain
    files exist, and never a pickle.

    Raises UnknownModel, saying how to pass a local folder, where the hub gives nothing.
    """
    folder = _snapshot(spec, ["model_index.json"])
    names = [name for name, item in read_model_index(folder).items() if isinstance(item, list)]
    plain = [
        f"{name}/{pattern}"
        for name in names
        for pattern in (*SMALL_FILES, *(f"{stem}.safetensors" for stem in STEMS))
    ]
    shards = [f"{name}/{stem}-*-of-*.safetensors" for name in names for stem in STEMS]
    folder = _snapshot(spec, ["model_index.json", *plain, *shards])
    bare = [name for name in names if _lacks_weights(folder / name)]
    if bare:
        _snapshot(spec, [f"{name}/*.safetensors" for name in bare])
    return folder


def _lacks_weights(folder: Path) -> bool:
    """A module's folder (tokenizers and schedulers have other configs) without plain files."""
    if not (folder / "config.json").is_file():
        return False
    return not any(WEIGHTS_FILE.fullmatch(path.name) for path in folder.glob("*.safetensors"))


def _snapshot(spec: ModelSpec, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(str(spec.hub_id), revision=spec.ref.revision, allow_patterns=patterns)
        )
    except (OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownModel(
            f"cannot get {spec.hub_id!r} from the hub: {reason}",
            hint=_hint(spec),
        ) from None


def _hint(spec: ModelSpec) -> str:
    folder = "Download it where there is a network and pass the folder: --model /path/to/folder"
    if spec.catalog is None:
        return f"{folder}."
    return f"{folder} (or tune speed and memory alone with --weights random)."
