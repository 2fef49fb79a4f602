"""`file://`: a folder (or one file) that this node can read. Links are followed."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from node.audit import Audit
from node.jobs import FetchEnded, FetchJob
from node.origins.base import public_url
from p2p.errors import OriginError, UsageError
from p2p.ids import Chunk
from p2p.manifest import File, Manifest

log = logging.getLogger(__name__)


def file_etag(status: os.stat_result) -> str:
    """A word that changes when the file does: its size and modification time."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _walk(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, Path]]:
    """Files below a folder; a link that leads back up is not followed twice."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name, Path(entry.path)


class FileOrigin:
    """A path on this host, or on a file system that all nodes mount."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"origin {public_url(url)!r} is not file:///absolute/path")
        self._root = Path(unquote(parts.path))
        self.url = "file://" + quote(str(self._root))
        self.account = "file://"
        self.audit = Audit(None)

    def __repr__(self) -> str:
        return f"<FileOrigin {self.url}>"

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """Sizes and times only: no byte is read."""
        files = []
        try:
            if self._root.is_dir():
                found = list(_walk(self._root, "", ()))
            else:
                found = [(self._root.name, self._root)]
            for name, path in found:
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    files.append(File(name, status.st_size, file_etag(status)))
                else:
                    log.warning("not a regular file, left out path=%s", path)
        except OSError as error:
            raise OriginError(f"{self.url}: {error.strerror}", fatal=True) from error
        if not files:
            raise OriginError(f"{self.url}: there are no files", fatal=True)
        files.sort(key=lambda file: file.path)
        return Manifest(model, self.url, tuple(files), chunk_bytes, block_bytes)

    async def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """See `Origin`."""
        file = manifest.files[manifest.extent(chunk).file]
        path = self._root / file.path if self._root.is_dir() else self._root
        url = "file://" + quote(str(path))
        return FetchJob(chunk, url, [], file.etag, "", file.size_bytes, object=url)

    async def refused(self, job: FetchJob, ended: FetchEnded) -> bool:
        """No: a folder has neither redirects nor credentials."""
        return False

    async def aclose(self) -> None:
        """Nothing is open."""
