"""Requests to one peer on one data connection, block by block into the store."""

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node import jobs
from node.chunks import ChunkMismatch, Chunks, Sink
from node.sockets import Turns, Window, receive_exactly, receive_into
from node.throttle import Throttle
from p2p import dataframe
from p2p.dataframe import Flag, Header, Kind
from p2p.errors import RemoteProtocolError, StoreError, StoreFull


@dataclass(slots=True)
class Received:
    """Totals of one worker."""

    bytes: int = 0
    duplicate_bytes: int = 0


class Downlink:
    """One data connection that we dialled.

    Args:
      report: takes what comes of each request.
      first_byte_s, stall_s: no byte for so long while something is asked: the peer is given up.
      throttle: the host's limit, asked before each read of payload.
    """

    def __init__(
        self,
        sock: socket.socket,
        chunks: Chunks,
        received: Received,
        report: Callable[[jobs.Report], None],
        first_byte_s: float,
        stall_s: float,
        throttle: Throttle,
    ) -> None:
        self._sock = sock
        self._chunks = chunks
        self._received = received
        self._report = report
        self._first_byte_s = first_byte_s
        self._stall_s = stall_s
        self._throttle = throttle
        self._asked: deque[jobs.AskJob] = deque()
        self._more = trio.Event()
        self._sink: Sink | None = None
        self._begin_s = 0.0
        self._window, self._turns = Window(sock), Turns()

    @property
    def busy_socket(self) -> socket.socket | None:
        """The connection, if something is asked on it."""
        return self._sock if self._asked else None

    def ask(self, job: jobs.AskJob) -> None:
        """Send a request; what comes of it is reported.

        Raises:
          OSError: the connection does not take it.
        """
        start, end = self._chunks.missing_range(job.chunk)
        if start == end:
            self._got(job)
            return
        try:
            self._chunks.allocate(job.chunk)
        except StoreFull as error:
            self._end(job, "no_space", str(error))
            return
        frame = Header(Kind.REQUEST, job.request, job.chunk, start, end - start)
        self._asked.append(job)
        if self._sock.send(frame.encode()) != dataframe.HEADER_BYTES:
            raise OSError(0, "the peer takes no requests")
        self._more.set()

    def cancel(self, request: int) -> bool:
        """Ask the peer to stop; the answer still comes. False if it is not ours."""
        if all(job.request != request for job in self._asked):
            return False
        frame = Header(Kind.CANCEL, request, 0)
        return self._sock.send(frame.encode()) == dataframe.HEADER_BYTES

    def fail(self, text: str) -> None:
        """The connection is over: every request ends."""
        self._close_sink()
        while self._asked:
            self._end(self._asked.popleft(), "failed", text)

    def _end(self, job: jobs.AskJob, why: str, text: str, retry_after_s: float = 0.0) -> None:
        self._report(jobs.AskEnded(job.request, job.chunk, why, retry_after_s, text))

    def _got(self, job: jobs.AskJob) -> None:
        digests = self._chunks.digests(job.chunk)
        self._report(jobs.Got(job.chunk, "peer", job.request, job.pin, digests, b""))

    async def run(self) -> None:
        """Take answers until the connection ends.

        Raises:
          OSError, trio.TooSlowError, RemoteProtocolError, ChunkMismatch, StoreError
        """
        while True:
            while not self._asked:
                self._more = trio.Event()
                with trio.CancelScope() as idle:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch_end, idle)
                        await self._more.wait()
                        nursery.cancel_scope.cancel()
            header = await self._header()
            job = self._asked[0]
            if header.request != job.request or header.chunk != job.chunk:
                raise RemoteProtocolError(f"an answer to request {header.request} is out of order")
            if header.kind is Kind.DATA:
                await self._data(job, header)
            else:
                self._asked.popleft()
                self._answered(job, header)

    async def _watch_end(self, idle: trio.CancelScope) -> None:
        """Notice that the peer closes a connection on which nothing is asked."""
        await trio.lowlevel.wait_readable(self._sock)
        if not self._asked and not self._sock.recv(1, socket.MSG_PEEK):
            raise OSError(0, "closed by the peer")

    async def _header(self) -> Header:
        data = await receive_exactly(self._sock, dataframe.HEADER_BYTES, self._first_byte_s)
        return dataframe.decode(data, dataframe.DOWNWARD)

    def _answered(self, job: jobs.AskJob, header: Header) -> None:
        if header.kind is Kind.BUSY:
            self._end(job, "busy", "busy", header.status / 1000)
        elif header.kind is Kind.NOT_HAVE:
            self._end(job, "not_have", "the peer has not got it")
        else:
            sink = self._sink
            complete = sink is not None and sink.complete
            if sink is not None:
                seconds = trio.current_time() - self._begin_s
                self._window.came(sink.position - sink.start, seconds)
            self._close_sink()
            if complete and self._chunks.missing_range(job.chunk) == (0, 0):
                self._got(job)
            else:
                self._end(job, "failed", f"the answer ended with status {header.status}")

    async def _data(self, job: jobs.AskJob, header: Header) -> None:
        """One block's frame."""
        digests = await receive_exactly(self._sock, header.digests, self._stall_s)
        if self._sink is None:
            self._begin_s = trio.current_time()
            self._sink = Sink(self._chunks, job.chunk, job.pin)
            if self._chunks.manifest.block_count(job.chunk) > 1:
                if not header.flags & Flag.DIGESTS:
                    raise RemoteProtocolError("a chunk of several blocks came without digests")
                self._expect(job, digests)
        sink = self._sink
        if header.offset != sink.position or header.offset + header.length > sink.end:
            raise RemoteProtocolError(f"data for bytes {header.offset} came at {sink.position}")
        left = header.length
        while left:
            window = sink.window()[:left]
            count = await receive_into(self._sock, window, self._stall_s, self._throttle)
            self._received.bytes += count
            left -= count
            try:
                sink.advance(count)
            except (ChunkMismatch, StoreFull) as error:
                self._refuse(job, error)
                raise
            await self._turns.moved(count)

    def _expect(self, job: jobs.AskJob, digests: bytes) -> None:
        assert self._sink is not None
        try:
            self._sink.expect(digests)
        except ChunkMismatch as error:
            self._refuse(job, error)
            raise

    def _refuse(self, job: jobs.AskJob, error: ChunkMismatch | StoreFull) -> None:
        self._asked.popleft()
        self._end(job, "no_space" if isinstance(error, StoreFull) else "corrupt", str(error))

    def _close_sink(self) -> None:
        if self._sink is not None:
            self._received.duplicate_bytes += self._sink.duplicate_bytes
            self._sink.close()
            self._sink = None


FAILURES = (OSError, trio.TooSlowError, RemoteProtocolError, ChunkMismatch, StoreError)
