"""What every origin does: list a model once, and describe the fetch of a chunk to a worker."""

from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from node.jobs import FetchJob
from p2p.errors import UsageError
from p2p.ids import Chunk
from p2p.manifest import Manifest


class Origin(Protocol):
    """The authority outside the swarm."""

    @property
    def url(self) -> str:
        """The URL without credentials and query, for people and for the tracker."""

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """Ask for all files of the model, with sizes and validators.

        Raises:
          OriginError: the origin is not there, empty, or cannot be read in ranges.
          ManifestError: a file's name would leave the model dir.
        """

    def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """What a worker needs to fetch a chunk. Its headers may hold a secret."""

    async def aclose(self) -> None:
        """Close idle connections."""


def public_url(url: str) -> str:
    """`url` without userinfo, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def default_model(url: str) -> str:
    """The model's name when nobody gave one: the public URL, without a slash at its end."""
    return public_url(url).rstrip("/")


def open_origin(url: str) -> Origin:
    """The origin behind a URL; nothing is asked of it yet.

    Raises:
      UsageError: the scheme is not one that we speak, or the URL has no host.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise UsageError(f"origin {public_url(url)!r} names no host")
        from node.origins.http import HttpOrigin

        return HttpOrigin(url)
    if parts.scheme == "file":
        from node.origins.file import FileOrigin

        return FileOrigin(url)
    raise UsageError(
        f"origin {public_url(url)!r} has scheme {parts.scheme or 'none'}: "
        "known are http, https and file (like file:///models/x/)"
    )
