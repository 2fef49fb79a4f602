"""`http(s)://`: one file, or a folder listed as JSON (nginx: `autoindex_format json`).

httpx carries the control plane (listing, HEAD, the probe); chunks are read by the workers' strict
ranged GET. Userinfo in the URL becomes an Authorization header, a query is kept for requests; both
are secrets and appear nowhere else.

Workers follow no redirects. One that they are answered with is remembered, the object's *pin*, and
later chunks are asked for there at once. Such places are often signed for a while only: a pin that
is refused is forgotten, and the origin redirects anew.

    original --redirect--> pin --redirect--> pin ...   MAX_REDIRECTS in a row
    pin --401, 403, 404, 410--> original               not twice in a row: that is a circle

"In a row" is within FORGET_S of each other: what was good for so long has served chunks.
"""

import base64
import logging
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import httpx
import trio

from node.audit import Audit
from node.jobs import FetchEnded, FetchJob
from node.origins.base import OriginOptions, public_url
from node.origins.control import (
    TIMEOUT_S,
    all_at_once,
    audited,
    delay_hint_s,
    is_fatal,
    patiently,
    transport_reason,
)
from node.tls import tls_context
from p2p.errors import OriginError
from p2p.ids import Chunk
from p2p.manifest import File, Manifest, check_path

log = logging.getLogger(__name__)

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FORGET_S = 60.0  # signed URLs live for minutes and more
MODIFIED = "modified:"
_RESERVED = "%/:?#[]@!$&'()*+,;=~"  # stays as it is in a redirect's target

Paths = list[str]  # a class with a method `list` cannot say it in a signature
Headers = list[tuple[str, str]]


def validator(headers: httpx.Headers) -> str:
    """What names this revision of an object: a strong ETag, else its Last-Modified."""
    etag = headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = headers.get("last-modified", "")
    return MODIFIED + modified if modified else ""


@dataclass(frozen=True, slots=True, repr=False)
class Pin:
    """Where an object was last redirected to (it may hold a secret), when, after how many hops."""

    url: str
    hops: int
    since: float


class HttpOrigin:
    """An HTTP server that answers range requests with 206.

    Args:
      url: one file, or a folder if it ends with a slash.
      options: `files` names the folder's files where it is not listed as JSON.
    """

    def __init__(self, url: str, options: OriginOptions | None = None) -> None:
        parts = urlsplit(url)
        self.url = public_url(url)
        self._files = options.files if options else ()
        self._query = parts.query
        self._headers: list[list[str]] = []
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            word = base64.b64encode(pair.encode()).decode()
            self._headers.append(["Authorization", f"Basic {word}"])
        self._folder = parts.path.endswith("/") or not parts.path
        self._pins: dict[str, Pin] = {}
        self._forgotten_at: dict[str, float] = {}
        self._rng = Random()  # only spreads retries
        self.audit = Audit(None)

    def __repr__(self) -> str:
        return f"<HttpOrigin {self.url}>"

    @property
    def account(self) -> str:
        """See `Origin`."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def _request_url(self, path: str) -> str:
        """The URL of a file of the manifest."""
        parts = urlsplit(self.url)
        full = parts.path if not self._folder else (parts.path or "/") + quote(path)
        return urlunsplit((parts.scheme, parts.netloc, full, self._query, ""))

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """See `Origin`."""
        async with httpx.AsyncClient(
            headers={"Accept-Encoding": "identity"}, timeout=TIMEOUT_S, verify=tls_context()
        ) as client:
            paths: Paths = []
            if not self._folder:
                paths.append(unquote(urlsplit(self.url).path.rpartition("/")[2]))
            elif self._files:
                paths += [check_path(path) for path in sorted(set(self._files))]
            else:
                await self._list_folder(client, "", paths)
            if not paths:
                raise OriginError(f"{self.url}: there are no files", fatal=True)
            found: dict[str, File] = {}

            async def ask(path: str) -> None:
                found[path] = await self._head(client, path)

            await all_at_once([partial(ask, path) for path in paths])
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
                "`autoindex on; autoindex_format json;`, or name the files with --files",
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
            raise OriginError(
                f"{public_url(url)}: HEAD tells no Content-Length (a folder's URL ends with /)",
                fatal=True,
            )
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
        return await patiently(lambda: self._ask_once(client, method, url, more), self._rng)

    async def _ask_once(
        self, client: httpx.AsyncClient, method: str, url: str, more: dict[str, str] | None
    ) -> httpx.Response:
        shown = public_url(url)
        follow = method == "HEAD" or more is not None
        kind, span = ("head" if follow else "list"), ((0, 1) if more else None)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                headers = [*self._headers_for(url), *(more or {}).items()]
                with audited(self.audit, shown, kind, span) as exchange:
                    async with client.stream(method, url, headers=headers) as answer:
                        exchange.answered(answer.status_code, answer.headers)
                        location = answer.headers.get("location", "")
                        if follow and answer.status_code in REDIRECTS and location:
                            url = _target(url, location)
                            continue
                        _check_status(answer, shown)
                        if not follow:
                            exchange.bytes = len(await answer.aread())
                        return answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text, fatal = transport_reason(error)
            raise OriginError(f"{shown}: {text}", fatal=fatal) from error
        except ValueError:
            raise OriginError(f"{shown}: redirects to what is no http URL", fatal=True) from None
        raise OriginError(f"{shown}: too many redirects", fatal=True)

    def _headers_for(self, url: str) -> Headers:
        """Our credentials, for our server only."""
        if urlsplit(url)[:2] != urlsplit(self.url)[:2]:
            return []
        return [(name, value) for name, value in self._headers]

    async def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """See `Origin`."""
        file = manifest.files[manifest.extent(chunk).file]
        modified = file.etag.removeprefix(MODIFIED) if file.etag.startswith(MODIFIED) else ""
        etag = "" if modified else file.etag
        url = self._request_url(file.path)
        name = public_url(url)
        if name in self._pins:
            url = self._pins[name].url
        headers = [[word, value] for word, value in self._headers_for(url)]
        return FetchJob(chunk, url, headers, etag, modified, file.size_bytes, object=name)

    async def refused(self, job: FetchJob, ended: FetchEnded) -> bool:
        """See `Origin`. A job that asked elsewhere than one would now is simply made anew."""
        parts = urlsplit(job.object)
        original = urlunsplit((*parts[:3], self._query, ""))
        pin = self._pins.get(job.object)
        current = pin.url if pin else original
        if ended.status in REDIRECTS:
            if job.url != current:
                return True
            return self._follow(job, pin, ended.location)
        if ended.status not in (401, 403, 404, 410) or job.url == original:
            return False
        if job.url == current:
            del self._pins[job.object]
            now = trio.current_time()
            last = self._forgotten_at.get(job.object)
            self._forgotten_at[job.object] = now
            return last is None or now - last >= FORGET_S
        return True

    def _follow(self, job: FetchJob, pin: Pin | None, location: str) -> bool:
        now = trio.current_time()
        hops = pin.hops if pin and now - pin.since < FORGET_S else 0
        try:
            target = _target(job.url, location)
        except ValueError:
            return False
        if hops >= MAX_REDIRECTS:
            self._pins.pop(job.object, None)
            return False
        if hops == 0:
            log.info("%s: redirected to %s", job.object, urlsplit(target).hostname)
        self._pins[job.object] = Pin(target, hops + 1, now)
        return True

    async def aclose(self) -> None:
        """Nothing is kept open between listings."""


def _target(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
      ValueError: to no http(s) URL.
    """
    target = urljoin(url, location)
    parts = urlsplit(target)
    if not location or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http URL")
    # what servers forget to encode has come as latin-1, and would not fit into a request's head
    return quote(urlunsplit((*parts[:4], "")), safe=_RESERVED, encoding="latin-1", errors="replace")


def _check_status(answer: httpx.Response, shown: str) -> None:
    status = answer.status_code
    if status < 300:
        return
    words = {401: "credentials are wrong or missing", 403: "access denied", 404: "not found"}
    text = f"{shown}: HTTP {status}" + (f" ({words[status]})" if status in words else "")
    raise OriginError(
        text, fatal=is_fatal(status), retry_after_s=delay_hint_s(answer.headers), status=status
    )
