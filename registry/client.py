"""Open a registry by path or URL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from registry.artifacts import ArtifactFolder
from registry.database import open_database, upgrade_database
from registry.errors import InvalidInput
from registry.store import Registry

DATABASE_NAME = "registry.sqlite3"


def open_registry(url_or_path: str | Path, *, create: bool = True) -> Registry:
    """A registry in a file: a path, a `sqlite:///` URL, or a folder that holds `registry.sqlite3`.

    `create` makes a new one where there is none; without it, opening never imports alembic and
    never writes. Artifacts lie beside it, in `<file name>.artifacts`.

    Raises InvalidInput, RegistryMissing, RegistryCorrupt, RegistryTooOld, RegistryTooNew (unless
    the newer schema is marked as readable by this release: then writes raise it) and
    RegistryReadOnly where a new one cannot be made.
    """
    path = database_path(url_or_path)
    database = open_database(path, create=create)
    return Registry(database, ArtifactFolder(path.with_name(f"{path.name}.artifacts")))


def upgrade_registry(url_or_path: str | Path) -> tuple[str | None, str]:
    """Bring a registry to this release's schema; its revision before (None: it was made) and now.

    Safe beside other processes, and to repeat. Raises RegistryTooNew without changing a byte.
    """
    return upgrade_database(database_path(url_or_path))


def database_path(url_or_path: str | Path) -> Path:
    """Absolute. Raises InvalidInput for nothing, and for a URL of another kind."""
    text = str(url_or_path)
    if not text.strip():
        raise InvalidInput(f"{text!r} is not a registry: give a file path or a sqlite:/// URL")
    path = _path_of_url(text) if "://" in text else Path(text)
    if path.is_dir():
        path = path / DATABASE_NAME
    return path.absolute()


def _path_of_url(text: str) -> Path:
    accepted = "a file path or a sqlite:/// URL"
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidInput(f"{text!r} is not a registry: give {accepted}") from error
    if url.get_backend_name() != "sqlite" or url.host or not url.database:
        shown = url.render_as_string(hide_password=True)
        raise InvalidInput(f"{shown!r} is not a registry this release can open: give {accepted}")
    return Path(url.database)
