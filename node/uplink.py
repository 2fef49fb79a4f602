"""Serving a peer's requests on one data connection: header bytes and `sendfile`."""

import logging
import os
import socket
from collections import deque
from dataclasses import dataclass

import trio

from node.chunks import Chunks
from node.polled import Polled
from node.sockets import TURN_BYTES, EndOfStream, set_interactive
from node.throttle import Throttle
from p2p import dataframe
from p2p.dataframe import EndStatus, Flag, Header, Kind
from p2p.digest import DIGEST_BYTES
from p2p.errors import RemoteProtocolError
from p2p.poller import READABLE, WRITABLE
from p2p.slots import UploadSlots

log = logging.getLogger(__name__)

QUEUE = 4  # requests behind the one being sent; more is refused at once
STUCK_S = 1.0  # without a byte: the way to the peer is broken, or it is frozen
READ_BYTES = 128 * dataframe.HEADER_BYTES
WAITING_MOST = 1024  # requests that wait for their chunks; a node keeps a window's worth


@dataclass(slots=True)
class Served:
    """Totals of one worker."""

    bytes: int = 0


@dataclass(slots=True)
class _Transfer:
    """The answer that is being sent."""

    header: Header
    at: int
    """in the chunk, of the next block"""
    begin_s: float
    waits: bool = False
    """it goes on as its chunk comes in"""
    digests: bytes | None = None
    """as they were sent; empty: each block has its own"""
    file: int = 0
    offset: int = 0
    """in the file, of the next byte of the block under way"""
    left: int = 0
    """bytes of it that are still to be sent from the file"""
    dropped: bool = False
    """no further block is sent: the chunk is on its way out of the cache"""

    @property
    def urgent(self) -> bool:
        """A reader is blocked on it."""
        return bool(self.header.flags & Flag.DEMAND) and not self.waits

    @property
    def end(self) -> int:
        return self.header.offset + self.header.length

    @property
    def rest(self) -> int:
        """Bytes of blocks that are not begun."""
        return self.end - self.at


class Uplink(Polled):
    """One data connection that a peer dialled.

    Args:
      timeout_s: the peer takes no byte for so long: the connection is given up.
      throttle: the host's limit, asked before each slice.
    """

    def __init__(
        self,
        sock: socket.socket,
        chunks: Chunks,
        slots: UploadSlots,
        served: Served,
        timeout_s: float,
        throttle: Throttle,
    ) -> None:
        super().__init__(sock)
        self._chunks = chunks
        self._slots = slots
        self._served = served
        self._timeout_s = timeout_s
        self._throttle = throttle
        self._queue: deque[tuple[Header, bool]] = deque()
        self._cancelled: set[int] = set()
        self._heads = b""
        """what has come of the next request"""
        self._out = b""
        """frames that the socket has not taken yet"""
        self._transfer: _Transfer | None = None
        self._waiting: dict[int, _Transfer] = {}
        """answers whose next block is not here yet"""
        self._resumable: deque[_Transfer] = deque()
        """answers that waited, and can go on"""
        self._ends: deque[tuple[Header, Kind, int]] = deque()
        """of those that are cancelled or refused: they go before the next block, never into one"""
        self._granted = 0
        self._prompt = False
        """what readers are blocked on goes over it, before others in the host's queue"""
        self._moved_s = 0.0
        self._stuck = False
        """nothing has moved for a while: what it holds of the slots others may have meanwhile"""

    @property
    def sock(self) -> socket.socket:
        """The connection."""
        return self._sock

    def close(self) -> None:
        """Whatever was being sent is over."""
        self._set_stuck(False)
        self._waiting.clear()
        while self._resumable:
            self._take_ready(self._resumable[0])
        if self._transfer is not None:
            self._end_transfer(self._transfer)

    def drop(self, chunk: int) -> None:
        """The chunk's bytes will be gone: take what was promised of them into memory. What was sent
        already is safe: the kernel holds its pages."""
        transfer = self._transfer
        if transfer is None or transfer.header.chunk != chunk:
            return
        if transfer.left:
            descriptor = self._chunks.descriptor(transfer.file)
            self._out += os.pread(descriptor, transfer.left, transfer.offset)
            self._served.bytes += transfer.left
            transfer.left = 0
        transfer.dropped = True

    def check(self, now: float) -> None:
        """Give up a peer that takes nothing; soon others are served in its stead."""
        if self._wanted() & WRITABLE and not self._paced:
            if now - self._moved_s > self._timeout_s:
                self._fail(trio.TooSlowError())
            elif now - self._moved_s > STUCK_S:
                self._set_stuck(True)

    def _set_stuck(self, stuck: bool) -> None:
        if stuck != self._stuck:
            self._stuck = stuck
            sign = -1 if stuck else 1
            self._slots.ready_bytes += sign * sum(one.rest for one in self._resumable)
            if self._transfer is not None and not self._transfer.waits:
                self._slots.used += sign

    def _add_ready(self, transfer: _Transfer) -> None:
        self._resumable.append(transfer)
        self._slots.ready_bytes += 0 if self._stuck else transfer.rest

    def _take_ready(self, transfer: _Transfer) -> None:
        self._resumable.remove(transfer)
        self._slots.ready_bytes -= 0 if self._stuck else transfer.rest

    # -- requests ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        data = self._sock.recv(READ_BYTES)
        if not data:
            raise EndOfStream
        data, size = self._heads + data, dataframe.HEADER_BYTES
        whole = len(data) - len(data) % size
        self._heads = data[whole:]
        for at in range(0, whole, size):
            self._take(dataframe.decode(data[at : at + size], dataframe.UPWARD))
        if self._wanted() & WRITABLE:
            self._writable()

    def _take(self, header: Header) -> None:
        if header.kind is Kind.CANCEL:
            self._cancel(header.request)
            return
        self._check_request(header)
        if not self._wanted() & WRITABLE:
            self._moved_s = trio.current_time()
        if header.flags & Flag.DEMAND and not self._prompt:
            self._prompt = True
            set_interactive(self._sock)
        if header.flags & Flag.WAIT:
            self._wait(_Transfer(header, header.offset, 0.0, waits=True))
        else:
            self._queue.append((header, len(self._queue) >= QUEUE))
        waiting = len(self._waiting) + len(self._resumable) + len(self._ends)
        if len(self._queue) > 16 * QUEUE or waiting > WAITING_MOST:
            raise RemoteProtocolError("a flood of requests on one data connection")

    def _cancel(self, request: int) -> None:
        waiting = self._waiting.pop(request, None)
        if waiting is None:
            resumable = (one for one in self._resumable if one.header.request == request)
            if (waiting := next(resumable, None)) is not None:
                self._take_ready(waiting)
        if waiting is not None:  # whoever gives us up has waited long enough
            self._ends.append((waiting.header, Kind.END, EndStatus.CANCELLED))
            return
        known = [queued.request for queued, _ in self._queue]
        if request in known or (self._transfer and request == self._transfer.header.request):
            self._cancelled.add(request)

    def _wait(self, transfer: _Transfer) -> None:
        """Send on when the next block is here, which may be now."""
        chunk = transfer.header.chunk
        if self._chunks.passable(chunk, transfer.at):
            if transfer.at == transfer.header.offset and self._slots.behind(transfer.rest):
                self._refuse(transfer.header)
                return
            self._add_ready(transfer)
        else:
            self._waiting[transfer.header.request] = transfer
            self._chunks.wait(chunk, self._came)

    def _came(self, chunk: int) -> None:
        """More of a chunk is here that something waited for."""
        idle = not self._wanted() & WRITABLE
        for request in [r for r, one in self._waiting.items() if one.header.chunk == chunk]:
            self._wait(self._waiting.pop(request))
        if idle and self._wanted() & WRITABLE and self._poller is not None and not self._paced:
            self._moved_s = trio.current_time()
            self._guard(self._writable)

    def _check_request(self, header: Header) -> None:
        manifest = self._chunks.manifest
        if header.chunk >= manifest.chunk_count:
            raise RemoteProtocolError(f"request for chunk {header.chunk} of {manifest.chunk_count}")
        length = manifest.extent(header.chunk).length
        if (
            not header.length
            or header.offset % manifest.block_bytes
            or header.offset + header.length > length
        ):
            raise RemoteProtocolError(
                f"request for bytes {header.offset}+{header.length} of chunk {header.chunk}"
            )

    # -- answers ----------------------------------------------------------------------------------

    def _writable(self) -> None:
        """Send until the socket is full, nothing is left, or others have waited long enough."""
        self._set_stuck(False)  # there may be room; if not, that is seen soon
        turn = TURN_BYTES
        while turn > 0:
            if self._out:
                if not self._flush():
                    break
            elif self._transfer is not None and self._transfer.left:
                if self._throttle.pacer is not None and not self._granted:
                    self._let_pace()
                    return
                if not self._transfer.urgent and self._slots.yields(trio.current_time()):
                    self._slots.wait(self._go_on)
                    self._watch(READABLE)
                    return
                if not (sent := self._send_file(self._transfer)):
                    break
                turn -= sent
            elif self._ends:
                self._answer(*self._ends.popleft())
            elif self._transfer is not None:
                self._next_block(self._transfer)
            elif self._queue:
                self._begin(*self._queue.popleft())
            elif self._resumable:
                self._transfer = self._resumable[0]
                self._take_ready(self._transfer)
            else:
                break
        self._watch(self._wanted())

    def _go_on(self) -> None:
        """What readers are blocked on has left."""
        if not self._paced:
            self._watch(self._wanted())

    def _wanted(self) -> int:
        busy = self._out or self._transfer or self._ends or self._queue or self._resumable
        return READABLE | WRITABLE if busy else READABLE

    def _flush(self) -> bool:
        """Send frames; False: the socket is full."""
        more = self._transfer is not None and self._transfer.left
        try:
            sent = self._sock.send(self._out, socket.MSG_MORE if more else 0)
        except BlockingIOError:
            return False
        self._out = self._out[sent:]
        self._moved_s = trio.current_time()
        return True

    def _answer(self, header: Header, kind: Kind, status: int) -> None:
        self._out += Header(kind, header.request, header.chunk, status=status).encode()

    def _begin(self, header: Header, refused: bool) -> None:
        demand = bool(header.flags & Flag.DEMAND)
        if not self._chunks.verified(header.chunk, header.offset, header.length):
            self._answer(header, Kind.NOT_HAVE, 0)
        elif refused or not self._slots.acquire(header.length, demand=demand):
            self._refuse(header)
        else:
            self._transfer = _Transfer(header, header.offset, trio.current_time())
            if demand:
                self._slots.urgent_began(trio.current_time())
            return
        self._cancelled.discard(header.request)

    def _refuse(self, header: Header) -> None:
        self._ends.append((header, Kind.BUSY, int(self._slots.retry_after_s * 1000)))

    def _next_block(self, transfer: _Transfer) -> None:
        """A header for the next block, or the end of the answer."""
        header, manifest = transfer.header, self._chunks.manifest
        stopped = transfer.dropped or header.request in self._cancelled
        if stopped and transfer.at < transfer.end:
            status = EndStatus.DROPPED if transfer.dropped else EndStatus.CANCELLED
            self._answer(header, Kind.END, status)
            self._end_transfer(transfer)
            return
        if transfer.at >= transfer.end:
            self._end_transfer(transfer)
            return
        if transfer.waits and not self._chunks.passable(header.chunk, transfer.at):
            self._transfer = None
            self._wait(transfer)
            return
        sent = transfer.digests if transfer.waits else b""
        if sent and sent != self._chunks.digests(header.chunk):
            self._answer(header, Kind.END, EndStatus.READ_ERROR)  # another one's bytes
            self._end_transfer(transfer)
            return
        extent, size = manifest.extent(header.chunk), manifest.block_bytes
        size = min(size, transfer.end - transfer.at)
        digests, flags = b"", Flag.NONE
        if transfer.waits:
            digests, flags = self._passed_digests(transfer)
        elif transfer.at == header.offset and manifest.block_count(header.chunk) > 1:
            digests, flags = self._chunks.digests(header.chunk), Flag.DIGESTS
        if transfer.at + size == transfer.end:
            flags |= Flag.LAST
        frame = Header(
            Kind.DATA, header.request, header.chunk, transfer.at, size, flags, len(digests)
        )
        self._out += frame.encode() + digests
        transfer.file, transfer.offset = extent.file, extent.offset + transfer.at
        transfer.left, transfer.at = size, transfer.at + size

    def _passed_digests(self, transfer: _Transfer) -> tuple[bytes, int]:
        """Those that go ahead of the next block of an answer that waits."""
        chunk = transfer.header.chunk
        if transfer.digests is None:
            transfer.digests = self._chunks.passed_digests(chunk)
            if transfer.digests:
                return transfer.digests, Flag.DIGESTS
        if transfer.digests:
            return b"", Flag.NONE
        at = transfer.at // self._chunks.manifest.block_bytes * DIGEST_BYTES
        return self._chunks.digests(chunk)[at : at + DIGEST_BYTES], Flag.OWN

    def _send_file(self, transfer: _Transfer) -> int:
        """Send payload; 0: the socket is full."""
        limited = self._throttle.pacer is not None
        size = min(transfer.left, self._granted) if limited else transfer.left
        descriptor = self._chunks.descriptor(transfer.file)
        try:
            sent = os.sendfile(self._sock.fileno(), descriptor, transfer.offset, size)
        except BlockingIOError:
            return 0
        if not sent:
            log.warning("cache file was cut chunk=%d", transfer.header.chunk)
            raise EndOfStream
        self._granted = max(0, self._granted - sent)
        self._moved_s = trio.current_time()
        self._served.bytes += sent
        transfer.offset, transfer.left = transfer.offset + sent, transfer.left - sent
        return sent

    def _end_transfer(self, transfer: _Transfer) -> None:
        self._transfer = None
        self._granted = 0
        self._cancelled.discard(transfer.header.request)
        if transfer.urgent:
            self._slots.urgent_ended()
        if not transfer.waits:
            self._slots.release(trio.current_time() - transfer.begin_s)

    async def _pace(self) -> None:
        """Wait for leave to send: nothing is granted that does not move at once."""
        if self._transfer is not None:
            self._granted = await self._throttle.take(self._transfer.left)
            self._moved_s = trio.current_time()
