"""Requests to one peer on one data connection, block by block into the store."""

import contextlib
import socket
from collections.abc import Callable, Iterable
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
from p2p.dataframe import EndStatus, Flag, Header, Kind
from p2p.digest import DIGEST_BYTES, chunk_pin
from p2p.errors import RemoteProtocolError, StoreFull
from p2p.poller import READABLE


@dataclass(slots=True)
class Received:
    """Totals of one worker."""

    bytes: int = 0
    duplicate_bytes: int = 0


@dataclass(slots=True)
class _Asked:
    """A request, the range of the chunk that its answer is to bring, and what has come of it."""

    request: int
    chunk: int
    pin: bytes
    start: int
    end: int
    waits: bool = False
    """it is answered when the peer has the chunk: silence says nothing"""
    urgent: bool = False
    """a reader is blocked on it: just these bytes are wanted"""
    sink: Sink | None = None
    begin_s: float = 0.0


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
        self._asked: dict[int, _Asked] = {}
        self._prompt = 0
        """requests that are to be answered at once"""
        self._coming: _Asked | None = None
        """whose block is coming"""
        self._head = bytearray()
        """what has come of a header and the digests behind it"""
        self._header: Header | None = None
        """of the block that is coming"""
        self._left = 0
        """bytes of its payload that are still to come"""
        self._low_water = 1
        self._heard_s = 0.0
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
        asked = _Asked(job.request, job.chunk, job.pin, *self._missing(job), urgent=bool(job.end))
        if asked.start == asked.end:
            self._got(asked)
            return
        try:
            self._chunks.allocate(job.chunk, job.start, job.end or None)
        except StoreFull as error:
            self._end(asked, "no_space", str(error))
            return
        if not self._prompt:
            self._heard_s = trio.current_time()
        self._prompt += 1
        self._send([asked], Flag.DEMAND if asked.urgent else Flag.NONE)

    def ask_ahead(self, asks: Iterable[tuple[int, int, bytes]]) -> None:
        """Send requests that wait until the peer has the chunks: number, chunk, pin or nothing.

        Raises:
          OSError: the connection does not take them.
        """
        sent = []
        for request, chunk, pin in asks:
            start, end = self._chunks.missing_range(chunk)
            asked = _Asked(request, chunk, pin, start, end, waits=True)
            if start == end:
                self._got(asked)
            else:
                sent.append(asked)
        if sent:
            self._send(sent, Flag.WAIT)

    def _send(self, sent: list[_Asked], flags: int) -> None:
        frames = []
        for one in sent:
            self._asked[one.request] = one
            size = one.end - one.start
            frames.append(Header(Kind.REQUEST, one.request, one.chunk, one.start, size, flags))
        data = b"".join(frame.encode() for frame in frames)
        if self._sock.send(data) != len(data):
            raise OSError(0, "the peer takes no requests")

    def _missing(self, job: jobs.AskJob) -> tuple[int, int]:
        """What is missing of what a request is to bring; equal if nothing is."""
        if job.end:
            return self._chunks.missing_within(job.chunk, job.start, job.end)
        return self._chunks.missing_range(job.chunk)

    def cancel(self, request: int, *, idle: bool = False) -> bool:
        """Ask the peer to stop; the answer still comes. False if it is not ours.

        Args:
          idle: only if nothing has come yet.
        """
        if request not in self._asked:
            return False
        if idle and self._asked[request].sink is not None:
            return True
        frame = Header(Kind.CANCEL, request, 0)
        return self._sock.send(frame.encode()) == dataframe.HEADER_BYTES

    def fail(self, text: str) -> None:
        """The connection is over: every request ends."""
        for asked in list(self._asked.values()):
            self._ended(asked)
            self._end(asked, "failed", text)

    def check(self, now: float) -> None:
        """Give the peer up if it lets us wait too long."""
        patience_s = self._stall_s if self._header is not None else self._first_byte_s
        waits = self._header is None and not self._prompt
        if self._paced or waits or now - self._heard_s < patience_s:
            return
        self._guard(self._readable)  # a slow link may have brought some, below the mark
        if now - self._heard_s >= patience_s:
            self._fail(trio.TooSlowError())

    def _end(self, asked: _Asked, why: str, text: str, retry_after_s: float = 0.0) -> None:
        self._report(jobs.AskEnded(asked.request, asked.chunk, why, retry_after_s, text))

    def _got(self, asked: _Asked) -> None:
        if asked.urgent and self._chunks.missing_range(asked.chunk) != (0, 0):
            self._report(jobs.GotBlocks(asked.request, asked.chunk))
            return
        digests = self._chunks.settle(asked.chunk, asked.pin)
        if not digests:
            self._end(asked, "failed", "blocks of several pins: those that peers sent are dropped")
            return
        pin = asked.pin or chunk_pin(digests)
        self._report(jobs.Got(asked.chunk, "peer", asked.request, pin, digests, b""))

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
        asked = self._asked.get(header.request)
        if asked is None or header.chunk != asked.chunk:
            raise RemoteProtocolError(f"an answer to request {header.request}, which is none here")
        if header.kind is not Kind.DATA:
            self._answered(asked, header)
            return
        sink = asked.sink
        if sink is None:
            asked.begin_s = self._heard_s
            sink = self._begin(asked, header, digests)
        if header.offset != sink.position or header.offset + header.length > sink.end:
            raise RemoteProtocolError(f"data for bytes {header.offset} came at {sink.position}")
        if header.flags & Flag.OWN:
            if len(digests) != DIGEST_BYTES or not asked.waits:
                raise RemoteProtocolError("a block's own digest came where it does not belong")
            sink.expect_block(digests)
        self._header, self._left, self._coming = header, header.length, asked
        if not header.length:
            self._block_came(header)

    def _begin(self, asked: _Asked, header: Header, digests: bytes) -> Sink:
        """The first block is coming. What has come meanwhile from elsewhere is received again."""
        several = self._chunks.manifest.block_count(asked.chunk) > 1
        if (several or not asked.pin) and not header.flags & (Flag.DIGESTS | Flag.OWN):
            raise RemoteProtocolError("a chunk came without digests, which it needs")
        try:
            sink = Sink(self._chunks, asked.chunk, asked.pin, (asked.start, asked.end))
            asked.sink = sink
            if header.flags & Flag.DIGESTS:
                sink.expect(digests)
        except (ChunkMismatch, StoreFull) as error:
            self._refuse(asked, error)
            raise
        return sink

    def _room(self) -> memoryview:
        assert self._coming is not None
        assert self._coming.sink is not None
        return self._coming.sink.window()[: self._left]

    def _read_payload(self, most: int) -> int:
        """Read at most so many bytes of payload; 0: none are there."""
        asked = self._coming
        assert asked is not None
        assert asked.sink is not None
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
            asked.sink.advance(count)
        except (ChunkMismatch, StoreFull) as error:
            self._refuse(asked, error)
            raise
        if not self._left:
            self._block_came(self._header)
        return count

    def _block_came(self, header: Header) -> None:
        asked, self._coming, self._header = self._coming, None, None
        self._mark(1)  # a header is shorter than any mark
        if header.flags & Flag.LAST and asked is not None:
            self._done(asked, header.status)

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

    def _answered(self, asked: _Asked, header: Header) -> None:
        if header.kind is Kind.END:
            self._done(asked, header.status)
            return
        self._ended(asked)
        if header.kind is Kind.BUSY:
            self._end(asked, "busy", "busy", header.status / 1000)
        else:
            self._end(asked, "not_have", "the peer has not got it")

    def _done(self, asked: _Asked, status: int) -> None:
        sink = asked.sink
        complete = sink is not None and sink.complete
        if sink is not None:
            if not asked.waits:  # what waited came no faster than the peer got it
                seconds = trio.current_time() - asked.begin_s
                self._window.came(sink.position - sink.start, seconds)
            asked.pin = asked.pin or sink.pin or b""
        self._ended(asked)
        if complete and (asked.urgent or self._chunks.missing_range(asked.chunk) == (0, 0)):
            self._got(asked)
        elif status == EndStatus.DROPPED:
            self._end(asked, "not_have", "the peer dropped it meanwhile")
        else:
            self._end(asked, "failed", f"the answer ended with status {status}")

    def _refuse(self, asked: _Asked, error: ChunkMismatch | StoreFull) -> None:
        self._ended(asked)
        self._end(asked, "no_space" if isinstance(error, StoreFull) else "corrupt", str(error))

    def _ended(self, asked: _Asked) -> None:
        """The request is answered, or never will be."""
        del self._asked[asked.request]
        self._prompt -= not asked.waits
        if asked.sink is not None:
            self._received.duplicate_bytes += asked.sink.duplicate_bytes
            asked.sink.close()
            asked.sink = None
