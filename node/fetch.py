"""Fetching chunks from the origin into the store: http(s) ranges and local files.

A chunk's missing blocks are cut into ranges, which are read at the same time, each block into
memory and, hashed, into its file. A broken body goes on at the received offset; a range that is
slower than nearly all others is asked for once more, and whichever is whole first counts.
"""

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from random import Random
from urllib.parse import unquote, urlsplit

import trio

from node import jobs
from node.checksums import Checksum, checksum_function
from node.chunks import Chunks, Sink
from node.dial import Dialler
from node.http_get import CHANGED, Answer, Body, Wire, get
from node.nics import Source, Sources
from node.origins.base import public_url
from node.permits import Permits
from node.ranges import Hedges, RangeSize, Tries
from node.sockets import Turns
from node.spans import Memory, Span, Spans, Target
from node.throttle import DOWNLOAD, Throttle
from node.wires import BROKEN, Wires
from p2p.checksum import CHECKSUM_BYTES, combine
from p2p.digest import chunk_pin
from p2p.errors import OriginError, StoreError, StoreFull
from p2p.needs import Part

THROTTLED = (429, 503)  # the whole cluster hears of these at once
NO_WAY_OUT = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT}


@dataclass(slots=True)
class Fetched:
    """Totals of one worker, and what is under way: chunk to bytes so far."""

    bytes: int = 0
    duplicate_bytes: int = 0
    under_way: dict[int, int] = field(default_factory=dict)


class Fetcher:
    """Origin fetches of one worker, with its idle connections.

    Args:
      connections: requests at once from each of the local addresses `source_ips` (none: the kernel
        chooses one); hedges come on top.
      home: the address to use first.
      throttle: the host's limit; none: there is none.
    """

    def __init__(
        self,
        chunks: Chunks,
        totals: Fetched,
        report: Callable[[jobs.Report], None],
        connections: int = 4,
        source_ips: tuple[str, ...] = (),
        home: str = "",
        dialler: Dialler | None = None,
        throttle: Throttle | None = None,
        permits: Permits | None = None,
    ) -> None:
        self._chunks = chunks
        self._totals = totals
        self._report = report
        self._throttle = throttle or Throttle(None, DOWNLOAD)
        self._permits = permits or Permits(report)
        self.sources = Sources(source_ips, connections, home)
        self.spans = Spans(self.sources, chunks.manifest.block_bytes)
        self.wires = Wires(dialler or Dialler(), several=len(self.sources.all) > 1)
        self._freed = trio.Event()
        self._rng = Random()  # only spreads retries
        self._size = RangeSize()
        self._hedges = {False: Hedges(), True: Hedges()}  # for readers (True) requests are short
        self._turns = Turns()

    async def fetch(self, job: jobs.FetchJob) -> None:
        """Carry out a job; its outcome is reported, never raised."""
        if not job.request:
            self._totals.under_way[job.chunk] = 0
            self.spans.expect(job.chunk)
        try:
            await self._fetch(job)
        except* (StoreError, OriginError, OSError, trio.TooSlowError) as group:
            self._report(_ended(job, _first(group)))
        finally:
            if not job.request:
                self._totals.under_way.pop(job.chunk, None)
                self.spans.began(job.chunk)

    async def warm(self, job: jobs.FetchJob) -> None:
        """Readers are here: the next need is to find connections."""
        if urlsplit(job.url).scheme != "file":
            source = self.sources.best(trio.current_time()) or self.sources.all[0]
            await self.wires.warm(job.url, source)

    async def _fetch(self, job: jobs.FetchJob) -> None:
        """Read what is missing of a chunk, or of a part of it.

        Raises:
          OriginError, OSError, trio.TooSlowError, StoreError
        """
        crcs: dict[int, int] = {}
        crc = checksum_function(job.checksum) if job.checksum else None
        if urlsplit(job.url).scheme == "file":
            first = (
                self._chunks.missing_within(job.chunk, job.start, job.end) if job.end else (0, 0)
            )
            if first[0] < first[1]:
                await self._copy(job, self._sink(job, *first, crcs, crc))
            for start, end in self._rest(job):
                await self._copy(job, self._sink(job, start, end, crcs, crc))
        else:
            async with trio.open_nursery() as nursery:

                def begin(start: int, end: int, kind: str = "first") -> None:
                    sink = self._sink(job, start, end, crcs, crc)
                    nursery.start_soon(self._span, self._new(job, sink, begin, kind))

                if job.end:  # for a reader: nothing else of this chunk competes with it
                    await self._urgent(job, begin, crcs, crc)
                for at, last in self._rest(job):
                    for start, end in self._size.cut(at, last, self._chunks.manifest.block_bytes):
                        begin(start, end)
                if not job.request and self.spans.began(job.chunk):
                    self._wake()
        if job.request and self._chunks.missing_spans(job.chunk):
            self._report(jobs.GotBlocks(job.request, job.chunk))
            return
        digests = self._chunks.digests(job.chunk)
        checksum, pin = self._checksum(job, crcs, crc) if crc else b"", chunk_pin(digests)
        self._report(jobs.Got(job.chunk, "origin", job.request, pin, digests, checksum))

    def _rest(self, job: jobs.FetchJob) -> list[tuple[int, int]]:
        """What is to be read after what a reader is blocked on."""
        return [] if job.request else self._chunks.missing_spans(job.chunk)

    async def _urgent(
        self,
        job: jobs.FetchJob,
        begin: Callable[[int, int, str], None],
        crcs: dict[int, int],
        crc: Checksum | None,
    ) -> None:
        """Read what a reader is blocked on, in pieces at the same time."""
        start, end = self._chunks.missing_within(job.chunk, job.start, job.end)
        pieces = Part(job.chunk, start, end).pieces(self._chunks.manifest.block_bytes)
        async with trio.open_nursery() as nursery:
            for _, at, last in pieces:
                sink = self._sink(job, at, last, crcs, crc)
                nursery.start_soon(self._span, self._new(job, sink, begin, "urgent"))

    def _sink(
        self, job: jobs.FetchJob, start: int, end: int, crcs: dict[int, int], crc: Checksum | None
    ) -> Sink:
        sink = Sink(self._chunks, job.chunk, None, (start, end), crc, crcs)
        sink.leased = not job.request
        return sink

    def _checksum(self, job: jobs.FetchJob, crcs: dict[int, int], crc: Checksum) -> bytes:
        """The store's checksum of the chunk; blocks that came another way are read again."""
        parts = []
        for block in range(self._chunks.manifest.block_count(job.chunk)):
            if block not in crcs:
                data = self._chunks.verified_block(job.chunk, block)
                if data is None:
                    self._chunks.map.set(job.chunk, block, 0)
                    raise OriginError(f"block {block} is damaged in the cache", fatal=False)
                crcs[block] = crc(data)
            parts.append((crcs[block], self._chunks.block_length(job.chunk, block)))
        return combine(job.checksum, parts).to_bytes(CHECKSUM_BYTES, "big")

    def hurry(self, chunk: int, start: int, end: int) -> None:
        """A reader is blocked on these bytes of a chunk that is being fetched."""
        if self.spans.hurry(chunk, start, end):
            self._wake()

    def _wake(self) -> None:
        """Whoever waits for a slot looks again."""
        self._freed.set()
        self._freed = trio.Event()

    # -- one range --------------------------------------------------------------------------------

    def _new(
        self, job: jobs.FetchJob, sink: Sink, begin: Callable[[int, int, str], None], kind: str
    ) -> Span:
        """A range, known before its first step: readers may be in a hurry by then."""
        offset = self._chunks.manifest.extent(job.chunk).offset
        span = Span(
            job, sink, offset, Tries(self._rng), self.sources.all[0], begin,
            "first" if kind == "urgent" else kind, kind == "urgent",
        )  # fmt: skip
        self.spans.all[span] = None
        return span

    async def _span(self, span: Span) -> None:
        """Ask until the range is whole.

        Raises:
          OriginError: the answer is wrong, or bodies never come.
          OSError, trio.TooSlowError: no answer came.
        """
        job, sink = span.job, span.sink
        try:
            while not sink.complete:
                before, answer, wait_s = sink.position, Answer(), 0.0
                try:
                    async with (
                        self._slot(span) as span.source,
                        self._permits.request(job.chunk, sink, answer),
                    ):
                        with trio.CancelScope() as span.request:
                            await self._hedged(span, answer)
                except* (OSError, trio.TooSlowError, OriginError) as group:
                    wait_s = self._decide(span, before, answer, _first(group))
                span.request = None
                if not sink.complete:
                    span.resting = wait_s > 0
                    await trio.sleep(wait_s)
                    span.resting = False
                span.kind = "resume" if sink.position > sink.start else "retry"
        finally:
            del self.spans.all[span]
            self._totals.duplicate_bytes += sink.duplicate_bytes
            sink.close()

    @asynccontextmanager
    async def _slot(self, span: Span) -> AsyncIterator[Source]:
        """A request's place at one of the local addresses."""
        while (source := self.sources.take(now := trio.current_time())) is None:
            if span.urgent:
                source = self.sources.take_at_once(now)
                break
            freed = self._freed
            with trio.move_on_at(self.sources.next_deadline(now)):
                await freed.wait()
        try:
            yield source
        finally:
            self.sources.release(source, trio.current_time())
            self._wake()

    def _decide(self, span: Span, before: int, answer: Answer, error: BaseException) -> float:
        """Seconds to wait before the next try; raises what ends the fetch."""
        sink = span.sink
        if isinstance(error, OriginError):
            wait_s = span.tries.refused(error)
        else:
            wait_s = span.tries.cut(
                progressed=sink.position > before,
                had_head=answer.had_head,
                stalled=isinstance(error, trio.TooSlowError),
            )
        if wait_s is not None:
            return wait_s
        if span.tries.fruitless:
            got, wanted = sink.position - sink.start, sink.end - sink.start
            text = f"short body: {got} of {wanted} bytes ({_reason(error)})"
            raise OriginError(f"{public_url(span.job.url)}: {text}", fatal=True) from error
        raise error

    async def _hedged(self, span: Span, answer: Answer) -> None:
        """One request, and a second one if it is slow."""
        hedges = self._hedges[span.urgent]
        slow_s = hedges.started()
        if slow_s == inf or self._throttle.pacer is not None:  # then we are slow, not the origin
            await self._request(span, span.sink, span.kind, answer, span.source)
            return
        stopped, original = trio.Event(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hedge, span, hedges, slow_s, original, stopped)
            try:
                with original:
                    await self._request(span, span.sink, span.kind, answer, span.source)
            finally:
                stopped.set()
            if not original.cancelled_caught:
                nursery.cancel_scope.cancel()

    async def _hedge(
        self,
        span: Span,
        hedges: Hedges,
        slow_s: float,
        original: trio.CancelScope,
        stopped: trio.Event,
    ) -> None:
        """Wait until the request is slow; then get the rest into memory, and take it from there."""
        await trio.sleep(slow_s)
        sink = span.sink
        size = sink.end - sink.position
        if not size or not hedges.allowed():
            return
        if not await self._permits.ask(span.job.chunk, size, spare=True) or sink.complete:
            return
        spare = Memory(sink.position, sink.end)
        source = self.sources.best(trio.current_time(), but=span.source) or span.source
        wasted = True
        try:
            await self._request(span, spare, "hedge", Answer(), source)
            original.cancel()
            await stopped.wait()
            self._totals.duplicate_bytes += sink.position - spare.start
            beyond = spare.end - max(spare.start, sink.end)  # others took that meanwhile
            self._totals.duplicate_bytes += max(0, beyond)
            wasted = False
        except (OSError, trio.TooSlowError, OriginError):
            return
        finally:
            if wasted:
                self._totals.duplicate_bytes += spare.position - spare.start
        for count in _copied(spare.data[sink.position - spare.start :], sink):
            self._advance(sink, count)

    async def _request(
        self, span: Span, target: Target, kind: str, answer: Answer, source: Source
    ) -> None:
        """One request for the rest of `target`; every byte that comes is counted.

        Raises:
          OriginError, OSError, trio.TooSlowError
        """
        begin, start = trio.current_time(), target.position
        try:
            await self._attempt(span, target, answer, source)
            if kind == "first":
                seconds = trio.current_time() - begin
                self._hedges[span.urgent].completed(seconds)
                self._size.completed(target.end - start, seconds)
        except OriginError as error:
            if error.status in THROTTLED:
                hint_s = min(error.retry_after_s or 0.0, 3600.0)
                self._report(jobs.Throttled(error.status, hint_s, error.code))
            raise
        finally:
            if answer.sent:
                self._report(
                    jobs.Requested(
                        span.job.object or public_url(span.job.url),
                        span.offset + start, answer.end, answer.status,
                        target.position - start, trio.current_time() - begin,
                        answer.request_id, kind,
                    )
                )  # fmt: skip

    async def _attempt(self, span: Span, target: Target, answer: Answer, source: Source) -> None:
        job, offset, stall_s = span.job, span.offset, span.tries.stall_s
        while True:
            try:
                wire, fresh = await self.wires.take(job.url, source)
            except BROKEN:
                self.sources.failed(source, trio.current_time())
                raise
            start, end = offset + target.position, offset + target.end
            try:
                body = await get(wire, job, start, end, stall_s, answer)
                await self._body(wire, body, target, stall_s, source)
                wire.reusable = body.keep_alive and offset + target.end == end
                return
            except OSError as error:
                if error.errno in NO_WAY_OUT:
                    self.sources.failed(source, trio.current_time())
                if fresh or answer.had_head:
                    raise  # else it was an idle connection that the server had closed
            except trio.TooSlowError:
                self.sources.failed(source, trio.current_time())
                raise
            finally:
                self.wires.give(job.url, wire)

    async def _body(
        self, wire: Wire, body: Body, target: Target, stall_s: float, source: Source
    ) -> None:
        """One response's body into the target."""
        begin, start = trio.current_time(), target.position
        await self._throttle.pay(len(body.first))
        for count in _copied(memoryview(body.first), target):
            source.came(count)
            self._took(target, count)
        while not target.complete:
            count = await wire.receive(target.window(), stall_s, self._throttle)
            source.came(count)
            self._took(target, count)
            await self._turns.moved(count)
        wire.window.came(target.position - start, trio.current_time() - begin)

    def _took(self, target: Target, count: int) -> None:
        self._totals.bytes += count
        self._advance(target, count)

    def _advance(self, target: Target, count: int) -> None:
        if isinstance(target, Sink) and target.leased:
            self._totals.under_way[target.chunk] += count
        target.advance(count)

    # -- local files ------------------------------------------------------------------------------

    async def _copy(self, job: jobs.FetchJob, sink: Sink) -> None:
        """A local file; its size and modification time are its revision."""
        path = unquote(urlsplit(job.url).path)
        offset = self._chunks.manifest.extent(job.chunk).offset
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            sink.close()
            raise OriginError(f"{public_url(job.url)}: {error.strerror}", fatal=True) from error
        try:
            self._check_file(job, descriptor)
            while not sink.complete:
                window = sink.window()
                if job.object and self._throttle.pacer is not None:  # not what is adopted in place
                    window = window[: await self._throttle.take(len(window))]
                count = os.preadv(descriptor, [window], offset + sink.position)
                if not count:
                    raise OriginError(f"{public_url(job.url)}: the file is shorter now", fatal=True)
                self._took(sink, count)
                await trio.lowlevel.checkpoint()  # every block: a disk is slow
            self._check_file(job, descriptor)
        finally:
            os.close(descriptor)
            self._totals.duplicate_bytes += sink.duplicate_bytes
            sink.close()

    def _check_file(self, job: jobs.FetchJob, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if f"{status.st_size}-{status.st_mtime_ns}" != job.etag:
            text = f"{public_url(job.url)}: the file has changed"
            raise OriginError(text, fatal=True, code=CHANGED)

    def close(self) -> None:
        """Close idle connections."""
        self.wires.close()


def _copied(data: memoryview, target: Target) -> Iterator[int]:
    """Copy what is in memory already; the caller tells the target of each count that comes."""
    while data and not target.complete:  # a range may have been cut meanwhile
        window = target.window()
        count = min(len(data), len(window))
        window[:count] = data[:count]
        data = data[count:]
        yield count


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of a group's errors: our store, then the origin's own word, then a broken connection."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            found.append(error)
    ranks = (StoreError, OriginError, BaseException)
    return min(found, key=lambda one: [isinstance(one, rank) for rank in ranks].index(True))


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or "no byte came in time"


def _ended(job: jobs.FetchJob, error: BaseException) -> jobs.FetchEnded:
    if isinstance(error, StoreError):
        full = isinstance(error, StoreFull)
        return jobs.FetchEnded(job.chunk, str(error), False, 0.0, full, request=job.request)
    if not isinstance(error, OriginError):
        text = f"{public_url(job.url)}: {_reason(error)}"
        return jobs.FetchEnded(job.chunk, text, False, 0.0, False, request=job.request)
    return jobs.FetchEnded(
        job.chunk, str(error), error.fatal, error.retry_after_s or 0.0, False,
        error.status, error.code, error.date, error.location, job.request,
    )  # fmt: skip
