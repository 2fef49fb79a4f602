"""Requests to one peer on one data connection, block by block into the store."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node import jobs
from node.chunks import ChunkMismatch, Chunks, Sink
from node.polled import Polled
from node.sockets import (
    LOW_WATER_BYTES,
    TURN_BYTES,
    EndOfStream,
    Window,
    readable_bytes,
    set_low_water,
)
from node.throttle import Throttle
from p2p import dataframe
from p2p.dataframe import Flag, Header, Kind
from p2p.errors import RemoteProtocolError, StoreFull
from p2p.poller import READABLE


@dataclass(slots=True)
class Received:
    """Totals of one worker."""

    bytes: int = 0
    duplicate_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and the range of the chunk that its answer is to bring."""

    job: jobs.AskJob
    start: int
    end: int


class Downlink(Polled):
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
        super().__init__(sock)
        self._chunks = chunks
        self._received = received
        self._report = report
        self._first_byte_s = first_byte_s
        self._stall_s = stall_s
        self._throttle = throttle
        self._asked: deque[_Asked] = deque()
        self._head = bytearray()
        """what has come of a header and the digests behind it"""
        self._header: Header | None = None
        """of the block that is coming"""
        self._left = 0
        """bytes of its payload that are still to come"""
        self._low_water = 1
        self._sink: Sink | None = None
        self._begin_s = self._heard_s = 0.0
        self._window = Window(sock)

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
        if not self._asked:
            self._heard_s = trio.current_time()
        self._asked.append(_Asked(job, start, end))
        if self._sock.send(frame.encode()) != dataframe.HEADER_BYTES:
            raise OSError(0, "the peer takes no requests")

    def cancel(self, request: int) -> bool:
        """Ask the peer to stop; the answer still comes. False if it is not ours."""
        if all(asked.job.request != request for asked in self._asked):
            return False
        frame = Header(Kind.CANCEL, request, 0)
        return self._sock.send(frame.encode()) == dataframe.HEADER_BYTES

    def fail(self, text: str) -> None:
        """The connection is over: every request ends."""
        self._close_sink()
        while self._asked:
            self._end(self._asked.popleft().job, "failed", text)

    def check(self, now: float) -> None:
        """Give the peer up if it lets us wait too long."""
        patience_s = self._stall_s if self._header is not None else self._first_byte_s
        if self._paced or not self._asked or now - self._heard_s < patience_s:
            return
        self._guard(self._readable)  # a slow link may have brought some, below the mark
        if now - self._heard_s >= patience_s:
            self._fail(trio.TooSlowError())

    def _end(self, job: jobs.AskJob, why: str, text: str, retry_after_s: float = 0.0) -> None:
        self._report(jobs.AskEnded(job.request, job.chunk, why, retry_after_s, text))

    def _got(self, job: jobs.AskJob) -> None:
        digests = self._chunks.digests(job.chunk)
        self._report(jobs.Got(job.chunk, "peer", job.request, job.pin, digests, b""))

    # -- reading ----------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Take what is there, up to a turn's worth."""
        turn = TURN_BYTES
        while turn > 0:
            if self._header is None:
                if not self._read_head():
                    return
            elif self._throttle.pacer is not None:
                self._read_with_leave(self._throttle.pacer.slice_bytes)
                return
            else:
                room = len(self._room())
                count = self._read_payload(room)
                if count < room and self._header is not None:  # that was all for now
                    self._mark(min(LOW_WATER_BYTES, self._left))
                    return
                turn -= count

    def _read_with_leave(self, slice_bytes: int) -> None:
        """Ask for leave once there is something to read."""
        with contextlib.suppress(BlockingIOError):
            if not self._sock.recv(1, socket.MSG_PEEK):
                raise EndOfStream
            self._let_pace()
            return
        self._mark(min(LOW_WATER_BYTES, self._left, slice_bytes))

    def _mark(self, low_water: int) -> None:
        """Do not wake us for less."""
        if low_water != self._low_water:
            set_low_water(self._sock, low_water)
            self._low_water = low_water

    def _read_head(self) -> bool:
        """Read on in a header, and in the digests behind it; True when they are whole."""
        size = dataframe.HEADER_BYTES
        while True:
            if len(self._head) >= dataframe.HEADER_BYTES:
                header = dataframe.decode(self._head[: dataframe.HEADER_BYTES], dataframe.DOWNWARD)
                size = dataframe.HEADER_BYTES + header.digests
                if len(self._head) == size:
                    digests = bytes(self._head[dataframe.HEADER_BYTES :])
                    self._head.clear()
                    self._take(header, digests)
                    return True
            try:
                data = self._sock.recv(size - len(self._head))
            except BlockingIOError:
                return False
            if not data:
                raise EndOfStream if self._asked else OSError(0, "closed by the peer")
            self._head += data
            self._heard_s = trio.current_time()

    def _take(self, header: Header, digests: bytes) -> None:
        asked = self._asked[0] if self._asked else None
        job = asked.job if asked is not None else None
        if (
            asked is None
            or job is None
            or header.request != job.request
            or header.chunk != job.chunk
        ):
            raise RemoteProtocolError(f"an answer to request {header.request} is out of order")
        if header.kind is not Kind.DATA:
            self._asked.popleft()
            self._answered(job, header)
            return
        if self._sink is None:
            self._begin_s = self._heard_s
            # what has come meanwhile from elsewhere is received again, and counted
            self._sink = Sink(self._chunks, job.chunk, job.pin, (asked.start, asked.end))
            if self._chunks.manifest.block_count(job.chunk) > 1:
                if not header.flags & Flag.DIGESTS:
                    raise RemoteProtocolError("a chunk of several blocks came without digests")
                self._expect(job, self._sink, digests)
        sink = self._sink
        if header.offset != sink.position or header.offset + header.length > sink.end:
            raise RemoteProtocolError(f"data for bytes {header.offset} came at {sink.position}")
        self._header, self._left = header, header.length
        if not header.length:
            self._block_came(header)

    def _room(self) -> memoryview:
        assert self._sink is not None
        return self._sink.window()[: self._left]

    def _read_payload(self, most: int) -> int:
        """Read at most so many bytes of payload; 0: none are there."""
        assert self._sink is not None
        assert self._header is not None
        try:
            count = self._sock.recv_into(self._room(), most)
        except BlockingIOError:
            return 0
        if not count:
            raise EndOfStream
        self._heard_s = trio.current_time()
        self._received.bytes += count
        self._left -= count
        try:
            self._sink.advance(count)
        except (ChunkMismatch, StoreFull) as error:
            self._refuse(self._asked[0].job, error)
            raise
        if not self._left:
            self._block_came(self._header)
        return count

    def _block_came(self, header: Header) -> None:
        self._header = None
        self._mark(1)  # a header is shorter than any mark
        if header.flags & Flag.LAST:
            self._done(self._asked.popleft().job, header.status)

    async def _pace(self) -> None:
        """Read as much as the limit allows: nothing is granted that does not move at once.

        What is not read fills the kernel's buffer, and TCP slows the sender down.
        """
        pacer = self._throttle.pacer
        size = min(len(self._room()), readable_bytes(self._sock))
        size = min(size, pacer.slice_bytes) if pacer is not None else size
        self._read_payload(await self._throttle.take(size))
        self._heard_s = trio.current_time()  # waiting for a turn is no time-out

    def _wanted(self) -> int:
        return READABLE

    def _writable(self) -> None:
        """Requests are small: nobody waits for room."""

    # -- answers ----------------------------------------------------------------------------------

    def _answered(self, job: jobs.AskJob, header: Header) -> None:
        if header.kind is Kind.BUSY:
            self._end(job, "busy", "busy", header.status / 1000)
        elif header.kind is Kind.NOT_HAVE:
            self._end(job, "not_have", "the peer has not got it")
        else:
            self._done(job, header.status)

    def _done(self, job: jobs.AskJob, status: int) -> None:
        sink = self._sink
        complete = sink is not None and sink.complete
        if sink is not None:
            self._window.came(sink.position - sink.start, trio.current_time() - self._begin_s)
        self._close_sink()
        if complete and self._chunks.missing_range(job.chunk) == (0, 0):
            self._got(job)
        else:
            self._end(job, "failed", f"the answer ended with status {status}")

    def _expect(self, job: jobs.AskJob, sink: Sink, digests: bytes) -> None:
        try:
            sink.expect(digests)
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
