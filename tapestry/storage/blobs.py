"""Large files in a store that outlives a machine: S3 and what speaks its protocol, or a folder.

A key names one content for good, by a digest in it, so that whoever puts it twice changes nothing,
and a fetch that broke off goes on where it stood. Files pass in pieces of a few mebibytes, whatever
their size. Credentials are the library's business: the environment (`AWS_ACCESS_KEY_ID`,
`AWS_PROFILE`'s web identity, an instance's role); nothing of them is kept or shown here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tapestry.errors import ConfigError, UnavailableError
from tapestry.storage.arriving import ArrivingFile
from tapestry.storage.atomic import sync_path

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PIECE_BYTES = 8 * 2**20
_PIECES_IN_FLIGHT = 4
_CONNECT_SECONDS = 5
_PIECE_SECONDS = 60
_RETRIES = 2
_RETRY_SECONDS = 20
_ARRIVING_SUFFIX = ".arriving"


class Blobs:
    """One store; keys are paths with slashes."""

    def __init__(self, url: str, *, endpoint: str = "") -> None:
        """Know the store at `url`; nothing is asked of it yet.

        Args:
            url: `s3://bucket/prefix` or `file:///folder`.
            endpoint: Of a store that is not Amazon's; http:// is for whoever accepts that.

        Raises:
            ConfigError: The URL is none of a store, or the library for it is not installed.
        """
        self.url = url
        self._folder: Path | None = None
        try:
            self._store = self._opened(url, endpoint)
        except ImportError as error:
            raise ConfigError(
                f"{url}: a store of blobs needs obstore: pip install 'tapestry-fl[s3]'"
            ) from error

    def _opened(self, url: str, endpoint: str) -> "ObjectStore":
        from obstore.store import LocalStore, S3Store  # noqa: PLC0415 - an extra

        parts = urlsplit(url)
        if parts.scheme == "file" and parts.path.strip("/"):
            self._folder = Path(unquote(parts.path))
            with _or_unavailable(url):
                return LocalStore(self._folder, mkdir=True)
        if parts.scheme != "s3" or not parts.netloc:
            raise ConfigError(f"{url!r:.60}: write s3://bucket/prefix or file:///shared/folder")
        config: Any = {"aws_endpoint": endpoint} if endpoint else {}
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=config,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "timeout": timedelta(seconds=_PIECE_SECONDS),
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
            },
        )

    def put(self, path: Path, key: str) -> None:
        """Store a file's content under `key`; it is whole there, or not there.

        Raises:
            UnavailableError: The store does not take it now.
        """
        import obstore  # noqa: PLC0415 - an extra

        with _or_unavailable(self.url):
            obstore.put(
                self._store,
                key,
                path,
                chunk_size=_PIECE_BYTES,
                max_concurrency=_PIECES_IN_FLIGHT,
            )
            self._make_durable(key)

    def put_bytes(self, data: bytes, key: str) -> None:
        """Store a small content.

        Raises:
            UnavailableError: The store does not take it now.
        """
        import obstore  # noqa: PLC0415 - an extra

        with _or_unavailable(self.url):
            obstore.put(self._store, key, data)
            self._make_durable(key)

    def _make_durable(self, key: str) -> None:
        """Wait for the disk under a folder; a store answers when it has done that itself."""
        if self._folder is not None:
            path = self._folder / key
            for part in (path, *path.parents[: len(Path(key).parts)]):
                sync_path(part)

    def size(self, key: str) -> int | None:
        """Return how many bytes are under `key`, None if nothing is.

        Raises:
            UnavailableError: The store does not say now.
        """
        import obstore  # noqa: PLC0415 - an extra

        with _or_unavailable(self.url):
            try:
                return int(obstore.head(self._store, key)["size"])
            except FileNotFoundError:
                return None

    def get(self, key: str, path: Path) -> bool:
        """Fetch a content to `path`, where it appears whole; tell whether it was in the store.

        One that broke off goes on where it stood.

        Raises:
            UnavailableError: The store does not give it now.
            OSError: The disk is full.
        """
        import obstore  # noqa: PLC0415 - an extra

        size = self.size(key)
        if size is None:
            return False
        arriving = path.with_name(f"{path.name}{_ARRIVING_SUFFIX}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with ArrivingFile(arriving, size) as file:
            if file.have < size:
                with _or_unavailable(self.url):
                    answer = obstore.get(self._store, key, options={"range": {"offset": file.have}})
                    pieces = answer.stream(min_chunk_size=_PIECE_BYTES)
                    while (piece := next(pieces, None)) is not None:
                        file.append(memoryview(piece))
            file.finish()
        sync_path(arriving)
        arriving.rename(path)
        return True

    def names(self, prefix: str) -> list[str]:
        """Return all keys below a prefix that ends where a slash would stand, sorted.

        Raises:
            UnavailableError: The store does not say now.
        """
        import obstore  # noqa: PLC0415 - an extra

        with _or_unavailable(self.url):
            pages = obstore.list(self._store, prefix)
            return sorted(one["path"] for page in pages for one in page)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove what is under `keys`, as far as it is there.

        Raises:
            UnavailableError: The store does not do it now.
        """
        import obstore  # noqa: PLC0415 - an extra

        with _or_unavailable(self.url):
            for key in keys:
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue


@contextmanager
def _or_unavailable(url: str) -> Iterator[None]:
    """Turn whatever a store answers into an error of ours; its first line says what and where."""
    from obstore.exceptions import BaseError  # noqa: PLC0415 - an extra

    try:
        yield
    except (BaseError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UnavailableError(f"{url}: the store cannot be used now: {lines[0]:.300}") from error
