"""Open a registry by path or URL."""

from __future__ import annotations

from pathlib import Path

from registry.artifacts import ArtifactFolder
from registry.database import Database, LateDatabase
from registry.errors import InvalidInput, RegistryMissing, RegistryReadOnly
from registry.location import (
    FileLocation,
    HttpLocation,
    Opening,
    PostgresqlLocation,
    locate,
)
from registry.sqlite_database import open_database, upgrade_database
from registry.store import Registry


def open_registry(
    url_or_path: str | Path, *, create: bool = True, opening: Opening | None = None
) -> Registry:
    """A registry in a file (a path, a `sqlite:///` URL, or a folder that holds `registry.sqlite3`),
    in PostgreSQL (`postgresql+psycopg://user@host/database?artifacts=/folder`), or served elsewhere
    (`https://host`; see `registry.http_registry` for what that one does).

    `create` makes a new one where there is none; without it, opening never imports alembic and
    never writes. Artifacts lie beside the file, in `<file name>.artifacts`, or in the folder that
    the URL names. `opening` is by default no token, this user's cache folder, and no base. A base
    is opened when it is first read: one that cannot be hides no record of the registry over it.
    Where there is no registry over it, the base alone is opened, to be read.

    Raises InvalidInput, RegistryMissing, RegistryCorrupt, RegistryTooOld, RegistryTooNew (unless
    the newer schema is marked as readable by this release: then writes raise it),
    RegistryReadOnly where a new one cannot be made, and RegistryError where it is out of reach.
    """
    location = locate(url_or_path)
    has_base = opening is not None and opening.base is not None
    if isinstance(location, HttpLocation):
        return _refuse_layers(location) if has_base else _served(location, opening)
    try:
        database = _opened(location, create)
    except RegistryMissing:
        if opening is None or opening.base is None:
            raise
        return _base(opening, at_once=True)
    artifacts = ArtifactFolder(location.artifacts)
    if opening is None or opening.base is None:
        return Registry(database, artifacts)
    from registry.layered import LayeredRegistry

    return LayeredRegistry(database, artifacts, _base(opening))


def _base(opening: Opening, *, at_once: bool = False) -> Registry:
    """Only to be read, whatever it would allow. Opened now with `at_once`, else when it is read."""
    location = locate(opening.base or "")
    if isinstance(location, HttpLocation):
        return _served(location, opening)

    def database() -> Database:
        found = _opened(location, create=False)
        found.refusal = RegistryReadOnly(f"registry {found.name} is a base: it is only read")
        return found

    late = database() if at_once else LateDatabase(location.name, database)
    return Registry(late, ArtifactFolder(location.artifacts))


def _refuse_layers(location: HttpLocation) -> Registry:
    raise InvalidInput(
        f"registry {location.name} cannot lie over a base: only one in a file or in PostgreSQL can",
        hint="Make it the base (TUNER_REGISTRY_BASE), under a registry of your own.",
    )


def upgrade_registry(url_or_path: str | Path) -> tuple[str | None, str]:
    """Bring a registry to this release's schema; its revision before (None: it was made) and now.

    Safe beside other processes, and to repeat. Raises RegistryTooNew without changing a byte, and
    InvalidInput for a served one.
    """
    location = locate(url_or_path)
    if isinstance(location, HttpLocation):
        raise InvalidInput(
            f"registry {location.name} is served elsewhere", hint="Upgrade it where it is served."
        )
    if isinstance(location, FileLocation):
        return upgrade_database(location.path)
    from registry.postgresql import upgrade_postgresql

    return upgrade_postgresql(location.url)


def _opened(location: FileLocation | PostgresqlLocation, create: bool) -> Database:
    if isinstance(location, FileLocation):
        return open_database(location.path, create=create)
    from registry.postgresql import open_postgresql

    return open_postgresql(location.url, create=create)


def _served(location: HttpLocation, options: Opening | None) -> Registry:
    try:
        from registry.http_registry import open_http
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise InvalidInput(
            f"registry {location.name} needs the package httpx2, which is not installed",
            hint="pip install 'diffusion-tuner[http]'",
        ) from error
    return open_http(location.url, options or Opening(_cache_dir()))


def _cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("tuner", appauthor=False)) / "registries"
