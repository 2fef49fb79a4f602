"""What every origin does: list a model once, and describe the fetch of a chunk to a worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from node.audit import Audit
from node.jobs import FetchEnded, FetchJob
from p2p.errors import UsageError
from p2p.ids import Chunk
from p2p.manifest import Manifest


@dataclass(frozen=True, slots=True)
class OriginOptions:
    """What a URL does not say. `None` and empty mean unset; secrets are in files and environment.

    `addressing` is `auto`, `virtual` (bucket.endpoint) or `path` (endpoint/bucket). `files` names
    the objects where the bucket cannot be listed (anonymous OSS), relative to the prefix.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: str = "auto"
    files: tuple[str, ...] = ()
    credentials_file: Path | None = None
    profile: str | None = None
    anonymous: bool = False


class Origin(Protocol):
    """The authority outside the swarm. `audit` takes a line for each of its own requests."""

    audit: Audit

    @property
    def url(self) -> str:
        """The URL without credentials and query, for people and for the tracker."""

    @property
    def account(self) -> str:
        """Whose limits requests count against, as far as a node can know: the endpoint."""

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """Ask for all files of the model, with sizes, validators and the store's checksums.

        Raises:
          OriginError: the origin is not there, empty, or cannot be read in ranges.
          ManifestError: a file's name would leave the model dir.
        """

    async def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """What a worker needs to fetch a chunk. Its headers and URL may hold a secret.

        Raises:
          OriginError: there are no credentials to sign with.
        """

    async def refused(self, job: FetchJob, ended: FetchEnded) -> bool:
        """The origin answered a fetch with a redirect, 401 or 403.

        Returns:
          Whether something has changed (fresher credentials, a corrected clock, a followed
          redirect), so that a new `fetch_job` may fare better at once.
        """

    async def aclose(self) -> None:
        """Close idle connections."""


def public_url(url: str) -> str:
    """`url` without userinfo, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def default_model(url: str) -> str:
    """The model's name when nobody gave one: the public URL, without a slash at its end."""
    return public_url(url).rstrip("/")


def open_origin(url: str, options: OriginOptions = OriginOptions()) -> Origin:
    """The origin behind a URL; nothing is asked of it yet.

    Raises:
      UsageError: the scheme is not one that we speak, the URL or an option cannot be, or the
        package for the scheme is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UsageError("the origin is not a URL") from None
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise UsageError(f"origin {public_url(url)!r} names no host")
        from node.origins.http import HttpOrigin

        return HttpOrigin(url, options)
    if parts.scheme == "file":
        from node.origins.file import FileOrigin

        return FileOrigin(url)
    if parts.scheme == "oss":
        from node.origins.oss import OssOrigin

        return OssOrigin(url, options)
    if parts.scheme == "s3":
        from node.origins.s3 import S3Origin

        return S3Origin(url, options)
    raise UsageError(
        f"origin {public_url(url)!r} has scheme {parts.scheme or 'none'}: "
        "known are oss, s3, http, https and file (like file:///models/x/)"
    )
