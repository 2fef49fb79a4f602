"""Fetching chunks from the origin into the store: http(s) ranges and local files."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import trio

from node import jobs
from node.chunks import Chunks, Sink
from node.http_get import Body, Wire, get, open_wire, shown
from p2p.digest import chunk_pin
from p2p.errors import OriginError, StoreFull

FRUITLESS = 5  # answers in a row with a good head and not one byte of the body: no outage is so
IDLE_WIRES = 8


@dataclass(slots=True)
class Fetched:
    """Totals of one worker, and what is under way: chunk to bytes so far."""

    bytes: int = 0
    duplicate_bytes: int = 0
    under_way: dict[int, int] = field(default_factory=dict)


class Fetcher:
    """Origin fetches of one worker, with its idle connections."""

    def __init__(
        self, chunks: Chunks, totals: Fetched, report: Callable[[jobs.Report], None]
    ) -> None:
        self._chunks = chunks
        self._totals = totals
        self._report = report
        self._idle: dict[tuple[str, str], list[Wire]] = {}

    async def fetch(self, job: jobs.FetchJob) -> None:
        """Carry out a job; its outcome is reported, never raised."""
        self._totals.under_way[job.chunk] = 0
        try:
            await self._fetch(job)
        except StoreFull as error:
            self._ended(job, str(error), no_space=True)
        except OriginError as error:
            self._ended(job, str(error), fatal=error.fatal, retry_after_s=error.retry_after_s)
        except (OSError, trio.TooSlowError) as error:
            text = getattr(error, "strerror", None) or str(error) or "no byte came in time"
            self._ended(job, f"{shown(job.url)}: {text}")
        finally:
            self._totals.under_way.pop(job.chunk, None)

    def _ended(
        self,
        job: jobs.FetchJob,
        text: str,
        *,
        fatal: bool = False,
        retry_after_s: float | None = None,
        no_space: bool = False,
    ) -> None:
        self._report(jobs.FetchEnded(job.chunk, text, fatal, retry_after_s or 0.0, no_space))

    async def _fetch(self, job: jobs.FetchJob) -> None:
        start, end = self._chunks.missing_range(job.chunk)
        if start < end:
            sink = Sink(self._chunks, job.chunk, None)
            try:
                if urlsplit(job.url).scheme == "file":
                    await self._copy(job, sink)
                else:
                    await self._resume(job, sink)
            finally:
                self._totals.duplicate_bytes += sink.duplicate_bytes
                sink.close()
        digests = self._chunks.digests(job.chunk)
        self._report(jobs.Got(job.chunk, "origin", 0, chunk_pin(digests), digests, b""))

    def _advance(self, sink: Sink, count: int) -> bool:
        self._totals.bytes += count
        self._totals.under_way[sink.chunk] += count
        return sink.advance(count)

    async def _resume(self, job: jobs.FetchJob, sink: Sink) -> None:
        """GET until the range is whole; a body that was cut goes on where it ended.

        Raises:
          OriginError: the answer is wrong, or bodies never come.
          OSError, trio.TooSlowError: no answer came.
        """
        offset = self._chunks.manifest.extent(job.chunk).offset
        fruitless = 0
        while not sink.complete:
            before = sink.position
            wire, fresh = await self._wire(job.url)
            body: Body | None = None
            whole = False
            try:
                body = await get(wire, job, offset + sink.position, offset + sink.end)
                await self._body(wire, body, sink)
                whole = True
            except OSError as error:
                if body is None and fresh:
                    raise
                if body is None:
                    continue  # an idle connection that the server had closed
                fruitless = 0 if sink.position > before else fruitless + 1
                if fruitless >= FRUITLESS:
                    got, wanted = sink.position - sink.start, sink.end - sink.start
                    text = f"short body: {got} of {wanted} bytes ({error.strerror or error})"
                    raise OriginError(f"{shown(job.url)}: {text}", fatal=True) from error
            finally:
                self._release(job.url, wire, whole and body is not None and body.keep_alive)

    async def _body(self, wire: Wire, body: Body, sink: Sink) -> None:
        """One response's body into the sink."""
        first = memoryview(body.first)
        while first:
            window = sink.window()
            count = min(len(first), len(window))
            window[:count] = first[:count]
            first = first[count:]
            self._advance(sink, count)
        while not sink.complete:
            if self._advance(sink, await wire.receive(sink.window())):
                await trio.lowlevel.checkpoint()

    async def _wire(self, url: str) -> tuple[Wire, bool]:
        idle = self._idle.get(urlsplit(url)[:2])
        if idle:
            return idle.pop(), False
        return await open_wire(url), True

    def _release(self, url: str, wire: Wire, keep: bool) -> None:
        idle = self._idle.setdefault(urlsplit(url)[:2], [])
        if keep and len(idle) < IDLE_WIRES:
            idle.append(wire)
        else:
            wire.close()

    async def _copy(self, job: jobs.FetchJob, sink: Sink) -> None:
        """A local file; its size and modification time are its revision."""
        path = unquote(urlsplit(job.url).path)
        offset = self._chunks.manifest.extent(job.chunk).offset
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OriginError(f"{shown(job.url)}: {error.strerror}", fatal=True) from error
        try:
            self._check_file(job, descriptor)
            while not sink.complete:
                count = os.preadv(descriptor, [sink.window()], offset + sink.position)
                if not count:
                    raise OriginError(f"{shown(job.url)}: the file is shorter now", fatal=True)
                self._advance(sink, count)
                await trio.lowlevel.checkpoint()
            self._check_file(job, descriptor)
        finally:
            os.close(descriptor)

    def _check_file(self, job: jobs.FetchJob, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if f"{status.st_size}-{status.st_mtime_ns}" != job.etag:
            raise OriginError(f"{shown(job.url)}: the file has changed", fatal=True)

    def close(self) -> None:
        """Close idle connections."""
        for wires in self._idle.values():
            for wire in wires:
                wire.close()
