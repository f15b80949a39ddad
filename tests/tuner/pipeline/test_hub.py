"""Snapshots of a hub that is a folder here: what is asked for, and what is said where it fails."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from registry.errors import UnknownModel
from tests.tuner.pipeline.tiny import FLUX, difference, load, picture, saved
from tuner.models import resolve_model
from tuner.pipeline import hub
from tuner.pipeline.hub import download

STEM = "diffusion_pytorch_model"


class Hub:
    """Answers `snapshot_download` from a folder, as the hub would: patterns are fnmatch's."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        self.asked.append((repo_id, revision))
        for path in self.repository.rglob("*"):
            name = str(path.relative_to(self.repository))
            if path.is_file() and any(fnmatch.fnmatch(name, item) for item in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.cache / name)
        return str(self.cache)

    def fetched(self) -> set[str]:
        every = (path for path in self.cache.rglob("*") if path.is_file())
        return {str(path.relative_to(self.cache)) for path in every}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(saved(FLUX, tmp_path / "repository"), tmp_path / "cache")
    monkeypatch.setattr(hub, "snapshot_download", found.snapshot_download)
    return found


def test_what_a_pipeline_needs_and_no_more(served: Hub) -> None:
    root = served.repository
    weights = root / "transformer" / f"{STEM}.safetensors"
    for extra in (
        f"transformer/{STEM}.fp16.safetensors",
        f"transformer/{STEM}.bin",
        "flux1-dev.safetensors",
        f"vae_1_0/{STEM}.safetensors",
        "text_encoder/flax_model.msgpack",
        "README.md",
    ):
        (root / extra).parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, root / extra)
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    spec = resolve_model("owner/model", revision="v1.0")
    assert download(spec) == served.cache
    assert set(served.asked) == {("owner/model", "v1.0")}
    assert served.fetched() == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "transformer/config.json",
        f"transformer/{STEM}.safetensors",
        "vae/config.json",
        f"vae/{STEM}.safetensors",
    }


def test_a_model_from_the_hub_makes_pictures(served: Hub) -> None:
    pipe = load(resolve_model("owner/model"))
    assert difference(picture(pipe), picture(load(FLUX))) == 0.0


def test_shards_come_with_their_index(served: Hub) -> None:
    folder = served.repository / "transformer"
    (folder / f"{STEM}.safetensors").unlink()
    load(FLUX).transformer.save_pretrained(str(folder), max_shard_size="300KB")
    download(resolve_model("owner/model"))
    names = {path.name for path in folder.iterdir()}
    assert len(names) > 3
    assert {path.name for path in (served.cache / "transformer").iterdir()} == names


def test_the_only_variant_is_fetched(served: Hub) -> None:
    folder = served.repository / "vae"
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.fp16.safetensors")
    download(resolve_model("owner/model"))
    assert f"vae/{STEM}.fp16.safetensors" in served.fetched()


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("Cannot find the requested files in the disk cache\nmore"),
        ConnectionError("Cannot find the requested files in the disk cache"),
    ],
)
def test_a_hub_that_gives_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UnknownModel, match=r"cannot get 'owner/model' from the hub") as raised:
        download(resolve_model("owner/model"))
    message = str(raised.value)
    assert "in the disk cache" in message
    assert "more" not in message
    assert "--model /path/to/folder" in message
    assert "--weights random" not in message
    with pytest.raises(UnknownModel, match=r"--weights random"):
        download(resolve_model("flux-dev"))


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own answer, no network asked. It reads its environment as it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UnknownModel, match=r"cannot get 'owner/model' from the hub: Cannot find"):
        download(resolve_model("owner/model"))
