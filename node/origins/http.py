"""`http(s)://`: one file, or a folder listed as JSON (nginx: `autoindex_format json`).

httpx carries the control plane (listing, HEAD, the probe); chunks are read by the workers' strict
ranged GET. Userinfo in the URL becomes an Authorization header, a query is kept for requests; both
are secrets and appear nowhere else.
"""

import base64
import logging
import ssl
from random import Random
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import httpx
import trio

from node.jobs import FetchJob
from node.origins.base import public_url
from node.tls import tls_context
from p2p.backoff import full_jitter
from p2p.errors import OriginError
from p2p.ids import Chunk
from p2p.manifest import File, Manifest, check_path

log = logging.getLogger(__name__)

TRIES = 5
AT_ONCE = 16  # HEADs under way: a model has tens of files, some have thousands
TIMEOUT_S = 10.0
MODIFIED = "modified:"

Paths = list[str]  # a class with a method `list` cannot say it in a signature


def validator(headers: httpx.Headers) -> str:
    """What names this revision of an object: a strong ETag, else its Last-Modified."""
    etag = headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = headers.get("last-modified", "")
    return MODIFIED + modified if modified else ""


class HttpOrigin:
    """An HTTP server that answers range requests with 206."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = public_url(url)
        self._query = parts.query
        self._headers: list[list[str]] = []
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            word = base64.b64encode(pair.encode()).decode()
            self._headers.append(["Authorization", f"Basic {word}"])
        self._folder = parts.path.endswith("/") or not parts.path
        self._rng = Random()  # only spreads retries

    def __repr__(self) -> str:
        return f"<HttpOrigin {self.url}>"

    def _request_url(self, path: str) -> str:
        """The URL of a file of the manifest."""
        parts = urlsplit(self.url)
        full = parts.path if not self._folder else (parts.path or "/") + quote(path)
        return urlunsplit((parts.scheme, parts.netloc, full, self._query, ""))

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """See `Origin`."""
        headers = [(name, value) for name, value in self._headers]
        async with httpx.AsyncClient(
            headers=[*headers, ("Accept-Encoding", "identity")],
            timeout=TIMEOUT_S,
            verify=tls_context(),
        ) as client:
            if self._folder:
                paths: Paths = []
                await self._list_folder(client, "", paths)
            else:
                paths = [unquote(urlsplit(self.url).path.rpartition("/")[2])]
            if not paths:
                raise OriginError(f"{self.url}: there are no files", fatal=True)
            found: dict[str, File] = {}
            limiter = trio.CapacityLimiter(AT_ONCE)

            async def ask(path: str) -> None:
                async with limiter:
                    found[path] = await self._head(client, path)

            await _all_or_first_error([lambda path=path: ask(path) for path in paths])
            files = tuple(found[path] for path in sorted(found))
            await self._probe(client, files)
        return Manifest(model, self.url, files, chunk_bytes, block_bytes)

    async def _list_folder(self, client: httpx.AsyncClient, prefix: str, paths: Paths) -> None:
        answer = await self._ask(client, "GET", self._request_url(prefix))
        try:
            entries: Any = answer.json()
            named = [(str(entry["name"]), entry["type"]) for entry in entries]
        except (ValueError, TypeError, KeyError) as error:
            raise OriginError(
                f"{public_url(str(answer.url))}: not a JSON listing: the server needs "
                "`autoindex on; autoindex_format json;`, or name one file",
                fatal=True,
            ) from error
        for name, kind in named:
            check_path(prefix + name)
            if "/" in name:
                check_path(name.replace("/", "\0"))
            if kind == "directory":
                await self._list_folder(client, f"{prefix}{name}/", paths)
            elif kind == "file":
                paths.append(prefix + name)

    async def _head(self, client: httpx.AsyncClient, path: str) -> File:
        url = self._request_url(path)
        answer = await self._ask(client, "HEAD", url)
        length = answer.headers.get("content-length", "")
        if not length.isdecimal():
            raise OriginError(f"{public_url(url)}: HEAD tells no Content-Length", fatal=True)
        word = validator(answer.headers)
        if not word:
            raise OriginError(
                f"{public_url(url)}: neither ETag nor Last-Modified: a change could not be noticed",
                fatal=True,
            )
        return File(path, int(length), word)

    async def _probe(self, client: httpx.AsyncClient, files: tuple[File, ...]) -> None:
        """Ask for one byte: whoever ignores Range is found out now, not at the first chunk."""
        file = next((file for file in files if file.size_bytes), None)
        if file is None:
            return
        url = self._request_url(file.path)
        answer = await self._ask(client, "GET", url, {"Range": "bytes=0-0"})
        wanted = f"bytes 0-0/{file.size_bytes}"
        if answer.status_code != 206 or answer.headers.get("content-range") != wanted:
            raise OriginError(
                f"{public_url(url)}: no range support: a request for one byte got "
                f"{answer.status_code} with Content-Range {answer.headers.get('content-range')!r}",
                fatal=True,
            )

    async def _ask(
        self, client: httpx.AsyncClient, method: str, url: str, more: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request, tried again where that can help; only the head of a ranged GET is read."""
        attempt = 0
        while True:
            try:
                return await self._ask_once(client, method, url, more)
            except OriginError as error:
                attempt += 1
                if error.fatal or attempt >= TRIES:
                    raise
                log.warning("%s: trying again (%d of %d)", error, attempt, TRIES)
                wait_s = full_jitter(attempt, 0.2, 5.0, self._rng)
                await trio.sleep(max(wait_s, error.retry_after_s or 0.0))

    async def _ask_once(
        self, client: httpx.AsyncClient, method: str, url: str, more: dict[str, str] | None
    ) -> httpx.Response:
        shown = public_url(url)
        try:
            for _ in range(6):
                async with client.stream(method, url, headers=more) as answer:
                    if answer.is_redirect and method == "HEAD":
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    _check_status(answer, shown)
                    if more is None and method == "GET":
                        await answer.aread()
                    return answer
        except httpx.HTTPError as error:
            text, fatal = _reason(error)
            raise OriginError(f"{shown}: {text}", fatal=fatal) from error
        raise OriginError(f"{shown}: too many redirects", fatal=True)

    def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """See `Origin`."""
        file = manifest.files[manifest.extent(chunk).file]
        modified = file.etag.removeprefix(MODIFIED) if file.etag.startswith(MODIFIED) else ""
        etag = "" if modified else file.etag
        url = self._request_url(file.path)
        return FetchJob(chunk, url, self._headers, etag, modified, file.size_bytes)

    async def aclose(self) -> None:
        """Nothing is kept open between listings."""


def _reason(error: BaseException) -> tuple[str, bool]:
    """What lies beneath a transport error, and whether asking again is useless."""
    text, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}", True
        if isinstance(cause, OSError):
            text = cause.strerror or str(cause) or text
        cause = cause.__cause__ or cause.__context__
    return text, False


def _check_status(answer: httpx.Response, shown: str) -> None:
    status = answer.status_code
    if status < 300:
        return
    after = answer.headers.get("retry-after", "")
    hint = float(after) if after.isdecimal() else None
    words = {401: "credentials are wrong or missing", 403: "access denied", 404: "not found"}
    text = f"{shown}: HTTP {status}" + (f" ({words[status]})" if status in words else "")
    raise OriginError(text, fatal=status < 500 and status not in (408, 429), retry_after_s=hint)


async def _all_or_first_error(tasks: "list[Any]") -> None:
    """Run all; the first OriginError ends the rest and is raised by itself."""
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
    except* OriginError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        first = error
    else:
        return
    raise first
