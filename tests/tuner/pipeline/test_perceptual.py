"""LPIPS where it cannot be computed: why, once; nothing is downloaded, nothing unpickled freely."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tuner import lpips as needs
from tuner.pipeline import perceptual
from tuner.pipeline.perceptual import CannotScoreError, lpips, read_backbone


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    perceptual._network.cache_clear()
    yield
    perceptual._network.cache_clear()


@pytest.mark.parametrize("version", [None, "0.28.0"])
def test_what_is_lacking_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    monkeypatch.setattr(perceptual, "package_version", lambda _: version)
    folder = tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    picture = torch.zeros(1, 3, 64, 64)
    with pytest.raises(CannotScoreError) as caught:
        lpips(picture, picture)
    assert str(caught.value) == needs.lacking(folder, version)
    assert ("torchvision" if version is None else str(folder)) in str(caught.value)
    assert not folder.exists()


def test_a_picture_too_small_is_not_scored() -> None:
    with pytest.raises(CannotScoreError, match="under 64 pixels"):
        lpips(torch.zeros(1, 3, 32, 64), torch.zeros(1, 3, 32, 64))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("harm was done",)


def named_by_its_content(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(perceptual, "BACKBONE", name)
    (folder / name).write_bytes(content)
    return folder / name


def test_a_backbone_that_is_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = named_by_its_content(tmp_path, pickle.dumps(Harmful(), protocol=2), monkeypatch)
    with pytest.raises(CannotScoreError, match="more than weights"):
        read_backbone(path)
    assert "harm" not in capsys.readouterr().out


def test_a_backbone_of_another_digest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / needs.BACKBONE
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CannotScoreError, match="damaged or another file"):
        read_backbone(path)


def test_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "saved.pth"
    torch.save({"features.0.weight": torch.ones(2)}, saved)
    path = named_by_its_content(tmp_path, saved.read_bytes(), monkeypatch)
    assert torch.equal(read_backbone(path)["features.0.weight"], torch.ones(2))
