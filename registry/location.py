"""Where a registry is: what a path or URL names, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from registry.errors import InvalidInput

DATABASE_NAME = "registry.sqlite3"
ARTIFACTS_OPTION = "artifacts"
_POSTGRESQL = "postgresql+psycopg"
_ACCEPTED = "a file path, or a sqlite:///, postgresql+psycopg:// or http(s):// URL"
_HTTP = ("http", "https")


@dataclass(frozen=True)
class FileLocation:
    """An SQLite file, by its absolute path; artifacts lie beside it."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def address(self) -> str:
        """The same registry for `open_registry`, from any folder."""
        return str(self.path)

    @property
    def artifacts(self) -> Path:
        return self.path.with_name(f"{self.path.name}.artifacts")

    @property
    def folders(self) -> tuple[Path, ...]:
        """What a process that writes to it must be able to write."""
        return (self.path.parent,)


@dataclass(frozen=True)
class PostgresqlLocation:
    """A PostgreSQL database, and the folder of its artifacts as this machine sees it."""

    url: URL = field(repr=False)
    artifacts: Path

    @property
    def name(self) -> str:
        """Without the password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def address(self) -> str:
        """The same registry for `open_registry`, with its password."""
        url = self.url.update_query_dict({ARTIFACTS_OPTION: str(self.artifacts)})
        return url.render_as_string(hide_password=False)

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.artifacts,)


@dataclass(frozen=True)
class HttpLocation:
    """A registry that is served elsewhere (`tuner serve`)."""

    url: str

    @property
    def name(self) -> str:
        return self.url

    @property
    def address(self) -> str:
        return self.url

    @property
    def folders(self) -> tuple[Path, ...]:
        return ()


@dataclass(frozen=True)
class Opening:
    """How registries are opened. Of served ones `cache_dir` keeps what was fetched; `token` is
    shown to those of `token_for`, which are URLs, and where none is named to all. `base` is the
    path or URL of a registry to read under the one that is opened."""

    cache_dir: Path
    token: str | None = field(default=None, repr=False)
    base: str | None = None
    token_for: tuple[str, ...] = ()

    def token_of(self, url: str) -> str | None:
        """What is shown to the service at `url`: a token for one host is no other's to see."""
        if self.token_for and _origin(url) not in map(_origin, self.token_for):
            return None
        return self.token


Location = FileLocation | PostgresqlLocation | HttpLocation


def locate(url_or_path: str | Path) -> Location:
    """Raises InvalidInput for nothing, and for a URL of another kind."""
    text = str(url_or_path)
    if not text.strip():
        raise InvalidInput(f"{text!r} is not a registry: give {_ACCEPTED}")
    return _location_of_url(text) if "://" in text else _file(Path(text))


def _file(path: Path) -> FileLocation:
    return FileLocation((path / DATABASE_NAME if path.is_dir() else path).absolute())


def _location_of_url(text: str) -> Location:
    scheme = text.partition("://")[0]
    if scheme.lower() in _HTTP:
        return _http(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # what it quotes may hold a password
        raise InvalidInput(f"{scheme}://… is not a registry: give {_ACCEPTED}") from error
    if url.drivername == _POSTGRESQL:
        return _postgresql(url)
    if url.get_backend_name() != "sqlite" or url.host or not url.database:
        shown = url.render_as_string(hide_password=True)
        raise InvalidInput(f"{shown!r} is not a registry this release can open: give {_ACCEPTED}")
    return _file(Path(url.database))


def _postgresql(url: URL) -> PostgresqlLocation:
    """Opening without a folder would look well until the first artifact is needed."""
    folder = url.query.get(ARTIFACTS_OPTION)
    without = url.difference_update_query([ARTIFACTS_OPTION])
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        shown = without.render_as_string(hide_password=True)
        raise InvalidInput(
            f"registry {shown} does not say where its artifacts lie: its URL needs the absolute "
            f"path of one folder, given as {ARTIFACTS_OPTION}",
            hint=f"For instance postgresql+psycopg://host/tuner?{ARTIFACTS_OPTION}=/mnt/tuner, "
            "a folder that every machine of the registry mounts.",
        )
    return PostgresqlLocation(without, Path(folder))


def _http(text: str) -> HttpLocation:
    """A token in a URL would be in every message and list of processes."""
    parts = _split(text)
    if parts is None or "@" in parts.netloc or parts.query or parts.fragment:
        host = "" if parts is None else parts.hostname
        raise InvalidInput(
            f"{text.partition('://')[0]}://{host}… is not a registry over HTTP: give "
            "http(s)://HOST[:PORT][/PATH], without user, password or query",
            hint="A token belongs into TUNER_REGISTRY_TOKEN.",
        )
    return HttpLocation(parts.geturl().rstrip("/"))


def _split(url: str) -> SplitResult | None:
    """None without a host, and for a host or port that cannot be one."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        has_port = parts.port != 0
    except ValueError:
        return None
    return parts if parts.hostname and has_port else None


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()
