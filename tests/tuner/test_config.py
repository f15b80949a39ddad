"""Settings come from the environment they are given, and nothing is created."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import InvalidInput
from tuner.config import load_settings


def test_everything_under_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "there"
    settings = load_settings({"TUNER_HOME": str(root)})
    assert settings.data_dir == root / "data"
    assert settings.cache_dir == root / "cache"
    assert settings.config_dir == root / "config"
    assert settings.registry == str(root / "data" / "registry.sqlite3")
    assert settings.locks_dir == root / "data" / "locks"
    assert settings.scratch_dir == root / "cache" / "trials"
    assert settings.compile_cache_dir == root / "cache" / "compile"
    assert not root.exists()


def test_the_platforms_folders_by_default(home: Path) -> None:
    settings = load_settings({})
    for folder in (settings.data_dir, settings.cache_dir, settings.config_dir):
        assert folder.name == "tuner"
        assert home in folder.parents
    assert Path(settings.registry).parent == settings.data_dir


def test_the_registry_of_ones_own(tmp_path: Path) -> None:
    environ = {"TUNER_HOME": str(tmp_path), "TUNER_REGISTRY": "postgresql://host/plans"}
    assert load_settings(environ).registry == "postgresql://host/plans"
    more = {"TUNER_REGISTRY_BASE": "/base", "TUNER_REGISTRY_TOKEN": "secret"}
    settings = load_settings({**environ, **more})
    assert (settings.opening.base, settings.opening.token) == ("/base", "secret")
    assert "secret" not in repr(settings)
    assert "TUNER_REGISTRY_TOKEN" not in settings.environ
    assert load_settings({**environ, "TUNER_REGISTRY": ""}).registry.startswith(str(tmp_path))


def test_a_token_goes_to_the_service_that_it_was_set_for(tmp_path: Path) -> None:
    given = {"TUNER_HOME": str(tmp_path), "TUNER_REGISTRY_TOKEN": "secret"}
    ours, theirs = "https://tuner.example.com/plans", "https://tuner.example.com.evil.example"
    for name in ("TUNER_REGISTRY", "TUNER_REGISTRY_BASE"):
        opening = load_settings({**given, name: ours}).opening
        assert opening.token_of("https://tuner.example.com") == "secret"
        for other in (theirs, "http://tuner.example.com", "https://tuner.example.com:444"):
            assert opening.token_of(other) is None
    assert load_settings(given).opening.token_of(theirs) == "secret"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HF_HOME": "~/b"}, "~/b/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_where_its_library_has_it(environ: dict[str, str], folder: str) -> None:
    """The same places, in the same order, as `huggingface_hub.constants`."""
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    own = {"HOME": "/home/someone", **environ}
    asked = subprocess.run(
        [sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert asked == folder.replace("~", "/home/someone")
    found = load_settings(environ).hub_cache_dir
    assert found == Path(folder).expanduser()


def test_what_the_machine_was_told(tmp_path: Path) -> None:
    environ = {"TUNER_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "CXX": "clang++"}
    settings = load_settings(environ)
    assert (settings.visible_devices, settings.cxx) == ("", "clang++")
    bare = load_settings({"TUNER_HOME": str(tmp_path), "CXX": ""})
    assert (bare.visible_devices, bare.cxx) == (None, None)


def test_a_token_is_one_printable_word(tmp_path: Path) -> None:
    given = {"TUNER_HOME": str(tmp_path)}
    assert load_settings({**given, "TUNER_REGISTRY_TOKEN": "secret\r\n"}).registry_token == "secret"
    assert load_settings({**given, "TUNER_REGISTRY_TOKEN": " \n"}).registry_token is None
    for wrong in ("secret one", "secret\nsecret", "secrét", "secret\x7f"):
        with pytest.raises(InvalidInput, match="TUNER_REGISTRY_TOKEN") as raised:
            load_settings({**given, "TUNER_REGISTRY_TOKEN": wrong})
        assert "secr" not in str(raised.value)


def test_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({"TUNER_HOME": "here"}).data_dir == tmp_path / "here" / "data"


def test_home_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InvalidInput, match="is not a folder") as caught:
        load_settings({"TUNER_HOME": str(file)})
    assert str(file) in caught.value.message


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = load_settings({"TUNER_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"})
    assert settings.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(settings)
