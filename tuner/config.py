"""Configuration, read once: the only place that looks at environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from registry.errors import InvalidInput
from registry.location import Opening

APP_NAME = "tuner"
HOME_VARIABLE = "TUNER_HOME"
REGISTRY_VARIABLE = "TUNER_REGISTRY"
BASE_VARIABLE = "TUNER_REGISTRY_BASE"
TOKEN_VARIABLE = "TUNER_REGISTRY_TOKEN"  # noqa: S105 (a variable's name)
REGISTRY_FILE = "registry.sqlite3"


@dataclass(frozen=True)
class Settings:
    """Where things are kept, and what the user's environment says about the machine.

    `registry` is a path or URL as `open_registry` takes it, `registry_token` what a served one is
    shown, if it is one of `token_for` or none is; workers do not inherit it. `registry_base` is
    read under it. `visible_devices` is CUDA_VISIBLE_DEVICES (None: not set; empty: every GPU is
    hidden). `cxx` is the C++ compiler that Inductor will call. `hub_cache_dir` is where
    `huggingface_hub` keeps models, `torch_hub_dir` where `torch.hub` does. `environ` is what worker
    processes inherit; it may hold tokens, so it is kept out of the representation.
    """

    registry: str
    data_dir: Path
    cache_dir: Path
    config_dir: Path
    visible_devices: str | None = None
    cxx: str | None = None
    hub_cache_dir: Path = Path()
    torch_hub_dir: Path = Path()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    registry_token: str | None = field(default=None, repr=False)
    registry_base: str | None = None
    token_for: tuple[str, ...] = ()

    @property
    def opening(self) -> Opening:
        """How registries are opened."""
        folder = self.cache_dir / "registries"
        return Opening(folder, self.registry_token, self.registry_base, self.token_for)

    @property
    def locks_dir(self) -> Path:
        """One lock file per device."""
        return self.data_dir / "locks"

    @property
    def scratch_dir(self) -> Path:
        """Jobs, logs and references of trials under way; safe to delete when nothing runs."""
        return self.cache_dir / "trials"

    @property
    def compile_cache_dir(self) -> Path:
        """Inductor's and Triton's caches, one folder per plan."""
        return self.cache_dir / "compile"

    @property
    def compiled_code_dir(self) -> Path:
        """What apps took from artifacts and compiled beside it; safe to delete."""
        return self.cache_dir / "compiled-code"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ`, by default this process's own. Nothing is created on disk.

    TUNER_HOME puts data, cache and configuration under one folder; TUNER_REGISTRY is the
    registry's path or URL, TUNER_REGISTRY_BASE that of one to read under it, TUNER_REGISTRY_TOKEN
    the token for those over HTTP. An empty value counts as not set. Raises InvalidInput.
    """
    environ = dict(os.environ if environ is None else environ)
    data_dir, cache_dir, config_dir = _folders(environ.get(HOME_VARIABLE))
    return Settings(
        registry=environ.get(REGISTRY_VARIABLE) or str(data_dir / REGISTRY_FILE),
        data_dir=data_dir,
        cache_dir=cache_dir,
        config_dir=config_dir,
        visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
        cxx=environ.get("CXX") or None,
        hub_cache_dir=_hub_cache(environ),
        torch_hub_dir=_torch_hub(environ),
        environ={name: value for name, value in environ.items() if name != TOKEN_VARIABLE},
        registry_token=_token(environ.get(TOKEN_VARIABLE) or ""),
        registry_base=environ.get(BASE_VARIABLE) or None,
        token_for=_services(environ),
    )


def _token(text: str) -> str | None:
    """Without the line's end that a file of secrets leaves on it. The value is in no message."""
    token = text.strip()
    if not all("!" <= character <= "~" for character in token):
        raise InvalidInput(
            f"{TOKEN_VARIABLE} is no token: one is printable ASCII without spaces",
            hint="Set it to the one line that `tokens create` printed.",
        )
    return token or None


def _services(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Whom the token was set for; none named: whichever the command line names."""
    named = (environ.get(name, "") for name in (REGISTRY_VARIABLE, BASE_VARIABLE))
    return tuple(url for url in named if url.lower().startswith(("http://", "https://")))


def _hub_cache(environ: Mapping[str, str]) -> Path:
    """As `huggingface_hub` finds it, without importing it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = environ.get("HF_HOME")
    caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(home) if home else caches / "huggingface").expanduser() / "hub"


def _torch_hub(environ: Mapping[str, str]) -> Path:
    """As `torch.hub` finds it, without importing it."""
    caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = environ.get("TORCH_HOME")
    return (Path(home) if home else caches / "torch").expanduser() / "hub"


def _folders(home: str | None) -> tuple[Path, Path, Path]:
    if not home:
        return (
            Path(platformdirs.user_data_dir(APP_NAME, appauthor=False)),
            Path(platformdirs.user_cache_dir(APP_NAME, appauthor=False)),
            Path(platformdirs.user_config_dir(APP_NAME, appauthor=False)),
        )
    root = Path(home).expanduser()
    if root.exists() and not root.is_dir():
        raise InvalidInput(
            f"{HOME_VARIABLE}={home!r} is not a folder",
            hint="Name a folder (it is made when needed), or unset the variable.",
        )
    root = root.absolute()
    return root / "data", root / "cache", root / "config"
