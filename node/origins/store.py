"""What the object stores share: listing, HEAD, signed jobs, and healing what is refused.

    list()       ListObjectsV2 -> keys -> HEAD of each -> Manifest
    fetch_job()  a URL and headers, signed here and carried out by a worker as they are
    refused()    clock, region, credentials: mended once, so that the next job fares better

Rule 1: a signature is made with the store's time. Each answer's Date corrects the offset.
Rule 2: a request that was signed with what is no longer current is simply signed again; only if it
carries what is current, the credentials are asked for anew. So of many refused at once, one asks.
Rule 3: errors name the object's public URL, the status, and the store's code. Nothing that was
sent is in them but the key.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from random import Random
from typing import ClassVar, cast
from urllib.parse import urlsplit

import httpx

from node.audit import Audit
from node.credentials import Source
from node.jobs import FetchEnded, FetchJob
from node.origins.base import OriginOptions, public_url
from node.origins.control import (
    TIMEOUT_S,
    all_at_once,
    audited,
    patiently,
    transport_reason,
)
from node.origins.endpoints import Endpoint, Location, parse_location
from node.origins.listing import (
    MAX_ERROR_BYTES,
    MAX_PAGE_BYTES,
    Entry,
    ErrorBody,
    parse_listing,
)
from node.origins.refusals import (
    CREDENTIAL_CODES,
    TIME_CODES,
    Answer,
    Refusal,
    lower_names,
    refusal_error,
    refusal_words,
)
from node.origins.signing import Signer, StoreClock, signed_at, signed_with
from node.tls import tls_context
from p2p.errors import OriginError, P2PError
from p2p.ids import Chunk
from p2p.manifest import MAX_FILES, File, Manifest, check_path

log = logging.getLogger(__name__)

FRESH_S = 60.0  # a signature that is younger, by the store's clock, was not refused for its age
STALE_S = 600.0  # signatures live for 15 minutes: near the end, any refusal may be for their age
Body = AsyncGenerator[bytes, None]  # what httpx calls an iterator; to be closed when cut short
HEALINGS = 3  # per request: the clock, the region and the credentials may all be wrong at once


class StoreOrigin(ABC):
    """A bucket, or a prefix of one, or one object.

    Args:
      url: `SCHEME://BUCKET/PREFIX/` or `SCHEME://BUCKET/KEY`.
      options: what the URL does not say.
      endpoint: where the bucket is.
      source: where credentials come from.
      signer: makes signatures; None when nothing is ever signed.
      clock: Unix time; tests set it wrong.
    """

    page_keys = 1000  # the most that either store gives
    token_encoded = False
    version_header: ClassVar[str]
    head_headers: ClassVar[Mapping[str, str]] = {}
    job_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        url: str,
        options: OriginOptions,
        endpoint: Endpoint,
        source: Source,
        signer: Signer | None,
        clock: Callable[[], float],
    ) -> None:
        self.url = public_url(url)
        self._location: Location = parse_location(url)
        self._files = options.files
        self._endpoint = endpoint
        self._source = source
        self._signer = signer
        self._clock = StoreClock(clock)
        self._versions_allowed = True
        self._rng = Random()  # only spreads retries
        self.audit = Audit(None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} at {self._endpoint.host} {self._signer!r}>"

    @property
    def account(self) -> str:
        """See `Origin`."""
        return f"{urlsplit(self.url).scheme}://{self._endpoint.host}"

    @abstractmethod
    def _checksum(self, headers: httpx.Headers) -> str:
        """The store's checksum of a whole object, as in `File`, or nothing.

        Raises:
          ValueError: its header is not of the form that the store uses.
        """

    def _relocate(self, refusal: Refusal) -> bool:
        """Whether the bucket turned out to be elsewhere."""
        return False

    # -- listing ----------------------------------------------------------------------------------

    async def list(self, model: str, chunk_bytes: int, block_bytes: int) -> Manifest:
        """See `Origin`."""
        async with self._client() as client:
            paths = await self._paths(client)
            if not paths:
                raise OriginError(f"{self.url}: there are no files", fatal=True)
            if len(paths) > MAX_FILES:
                raise OriginError(f"{self.url}: more than {MAX_FILES} files", fatal=True)
            found: dict[str, File] = {}

            async def ask(path: str) -> None:
                found[path] = await self._head(client, path)

            await all_at_once([partial(ask, path) for path in paths])
        files = tuple(found[path] for path in sorted(found))
        return Manifest(model, self.url, files, chunk_bytes, block_bytes)

    async def _paths(self, client: httpx.AsyncClient) -> Sequence[str]:
        """The files' names, all of which stay inside the model dir."""
        if not self._location.is_folder:
            return [check_path(self._location.key.rpartition("/")[2])]
        if self._files:
            return [check_path(path) for path in sorted(set(self._files))]
        prefix = self._location.key
        keys = {
            entry.key
            for entry in await self._entries(client)
            if entry.size or not entry.key.endswith("/")  # the marker of a folder
        }
        return [check_path(key.removeprefix(prefix)) for key in sorted(keys)]

    async def _entries(self, client: httpx.AsyncClient) -> Sequence[Entry]:
        entries: list[Entry] = []
        query = [("list-type", "2"), ("encoding-type", "url"), ("max-keys", str(self.page_keys))]
        if self._location.key:
            query.append(("prefix", self._location.key))
        tokens: set[str] = set()
        more: Sequence[tuple[str, str]] = ()
        while True:
            answer = await self._ask(client, "GET", "", [*query, *more])
            page = parse_listing(
                answer.body, self._location.key, self.url, token_encoded=self.token_encoded
            )
            entries += page.entries
            if page.token is None:
                return entries
            # one that came before goes round in circles; each page costs a token, full or empty
            if page.token in tokens or max(len(tokens), len(entries)) >= 2 * MAX_FILES:
                raise OriginError(f"{self.url}: the listing does not end", fatal=True)
            tokens.add(page.token)
            more = [("continuation-token", page.token)]

    async def _head(self, client: httpx.AsyncClient, path: str) -> File:
        key = self._location.key_of(path)
        headers = (await self._ask(client, "HEAD", key)).headers
        shown = self._location.shown(key)
        length, etag = headers.get("content-length", ""), headers.get("etag", "")
        if not (length.isascii() and length.isdecimal()):
            raise OriginError(f"{shown}: HEAD tells no Content-Length", fatal=True)
        if not etag or etag.startswith("W/"):
            raise OriginError(f"{shown}: no strong ETag: a change could not be noticed", fatal=True)
        version = headers.get(self.version_header, "")
        try:
            checksum = self._checksum(headers)
        except ValueError:
            raise OriginError(f"{shown}: the store's checksum is not one", fatal=True) from None
        return File(path, int(length), etag, "" if version == "null" else version, checksum)

    # -- requests ---------------------------------------------------------------------------------

    def _client(self) -> httpx.AsyncClient:
        headers = {"Accept-Encoding": "identity", "User-Agent": "shoal"}
        return httpx.AsyncClient(
            headers=headers, timeout=TIMEOUT_S, verify=tls_context(), trust_env=False
        )

    def _shown(self, key: str) -> str:
        """What a request is about: the object, or for the empty key what is listed."""
        return self._location.shown(key) if key else self.url

    async def _signed(
        self, method: str, url: str, key: str, headers: Mapping[str, str]
    ) -> dict[str, str]:
        credentials = await self._source.get()
        if credentials is None or self._signer is None:
            return dict(headers)
        bucket, now = self._location.bucket, self._clock.now()
        return self._signer.sign(method, url, bucket, key, headers, credentials, now)

    async def _ask(
        self,
        client: httpx.AsyncClient,
        method: str,
        key: str,
        query: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """A request that was answered with 200; it is healed and tried again where that can help.

        Raises:
          OriginError
        """
        more = self.head_headers if method == "HEAD" else {}

        async def ask() -> Answer:
            healings = 0
            while True:
                url = self._endpoint.url(self._location.bucket, key, query)
                headers = await self._signed(method, url, key, more)
                answer = await self._send(client, method, url, key, headers)
                if answer.status == 200:
                    return answer
                error, sent = answer.error(), lower_names(headers.items())
                region = answer.headers.get("x-amz-bucket-region", error.region)
                # the Date of every answer has been learned of already
                refusal = Refusal(url, sent, answer.status, error.code, "", region)
                healings += 1
                if healings > HEALINGS or not await self._heal(refusal):
                    words = self._words(answer.status, error, key, "authorization" in sent)
                    raise refusal_error(self._shown(key), answer, error, words)

        return await patiently(ask, self._rng)

    async def _send(
        self,
        client: httpx.AsyncClient,
        method: str,
        url: str,
        key: str,
        headers: Mapping[str, str],
    ) -> Answer:
        body, kind = bytearray(), "head" if method == "HEAD" else "list"
        try:
            with audited(self.audit, self._shown(key), kind) as exchange:
                async with (
                    client.stream(method, url, headers=dict(headers)) as answer,
                    aclosing(cast(Body, answer.aiter_bytes())) as parts,
                ):
                    exchange.answered(answer.status_code, answer.headers)
                    self._clock.learn(answer.headers.get("date", ""))
                    limit = MAX_PAGE_BYTES if answer.status_code == 200 else MAX_ERROR_BYTES
                    async for part in parts:
                        body += part
                        exchange.bytes = len(body)
                        if len(body) > limit:
                            break
                    return Answer(answer.status_code, answer.headers, bytes(body))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text, fatal = transport_reason(error)
            text = f"{self._shown(key)}: endpoint {self._endpoint.host}: {text}"
            raise OriginError(text, fatal=fatal or isinstance(error, httpx.InvalidURL)) from error

    def _words(self, status: int, error: ErrorBody, key: str, signed: bool) -> str:
        """What a refusal means, as far as the code tells it or the request does."""
        words = refusal_words(error, status, self._endpoint.host)
        if status == 404 and key and key == self._location.key:
            words += "; the URL of a folder ends with a slash"
        if status != 403 or words:
            return words
        words = "access denied"
        if not signed:
            words += " to anonymous requests"
            words += ", and no AWS credentials were found" if self._signer else ""
        if not key:  # to read objects may be allowed nevertheless
            words += ", the bucket cannot be listed: name the objects with --files"
        return words

    # -- jobs -------------------------------------------------------------------------------------

    async def fetch_job(self, manifest: Manifest, chunk: Chunk) -> FetchJob:
        """See `Origin`."""
        file = manifest.files[manifest.extent(chunk).file]
        key = self._location.key_of(file.path)
        pinned = file.version and self._versions_allowed
        query = [("versionId", file.version)] if pinned else []
        url = self._endpoint.url(self._location.bucket, key, query)
        headers = await self._signed("GET", url, key, self.job_headers)
        return FetchJob(
            chunk,
            url,
            [[name, value] for name, value in headers.items()],
            file.etag,
            "",
            file.size_bytes,
            file.checksum.partition(":")[0],
            self._location.shown(key),
        )

    async def refused(self, job: FetchJob, ended: FetchEnded) -> bool:
        """See `Origin`. What goes wrong meanwhile is logged."""
        sent = lower_names((name, value) for name, value in job.headers)
        try:
            return await self._heal(Refusal(job.url, sent, ended.status, ended.code, ended.date))
        except P2PError as error:
            log.warning("%s: %s", job.object, error)
            return False

    async def _heal(self, refusal: Refusal) -> bool:
        """Whether the same request, signed anew, may fare better.

        Raises:
          OriginError: credentials should be fresher, and cannot be had.
        """
        self._clock.learn(refusal.date)
        if self._relocate(refusal):
            return True
        if refusal.status not in (400, 401, 403) or "authorization" not in refusal.headers:
            return False
        made_at = signed_at(refusal.headers)
        limit_s = FRESH_S if refusal.code in TIME_CODES else STALE_S
        if made_at is not None and abs(self._clock.now() - made_at) > limit_s:
            return True
        if not refusal.code or refusal.code in CREDENTIAL_CODES:
            current = await self._source.get()
            if current is not None and signed_with(refusal.headers, current):
                await self._source.refresh()
                current = await self._source.get()
            if current is not None and not signed_with(refusal.headers, current):
                return True
        if refusal.code in ("AccessDenied", "") and "versionId=" in urlsplit(refusal.url).query:
            # to read an object by version is a permission of its own; If-Match guards it as well
            self._versions_allowed = False
            return True
        return False

    async def aclose(self) -> None:
        """Nothing is kept open between listings."""
        return
