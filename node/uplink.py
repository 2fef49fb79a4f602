"""Serving a peer's requests on one data connection: header bytes and `sendfile`."""

import logging
import os
import socket
from collections import deque
from dataclasses import dataclass

import trio

from node.chunks import Chunks
from node.sockets import EndOfStream, Turns, receive_exactly, send_all, send_file
from node.throttle import Throttle
from p2p import dataframe
from p2p.dataframe import EndStatus, Flag, Header, Kind
from p2p.errors import RemoteProtocolError
from p2p.slots import UploadSlots

log = logging.getLogger(__name__)

QUEUE = 4  # requests behind the one being sent; more is refused at once


@dataclass(slots=True)
class Served:
    """Totals of one worker."""

    bytes: int = 0


class Uplink:
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
        self._sock = sock
        self._chunks = chunks
        self._slots = slots
        self._served = served
        self._timeout_s = timeout_s
        self._throttle = throttle
        self._queue: deque[tuple[Header, bool]] = deque()
        self._more = trio.Event()
        self._cancelled: set[int] = set()
        self._sending: int | None = None
        self._turns = Turns()

    async def run(self) -> None:
        """Serve until the connection ends.

        Raises:
          OSError, trio.TooSlowError, RemoteProtocolError
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            while True:
                data = await receive_exactly(self._sock, dataframe.HEADER_BYTES, float("inf"))
                header = dataframe.decode(data, dataframe.UPWARD)
                if header.kind is Kind.CANCEL:
                    waiting = [queued.request for queued, _ in self._queue]
                    if header.request in (*waiting, self._sending):
                        self._cancelled.add(header.request)
                    continue
                self._check(header)
                self._queue.append((header, len(self._queue) >= QUEUE))
                if len(self._queue) > 16 * QUEUE:
                    raise RemoteProtocolError("a flood of requests on one data connection")
                self._more.set()

    def _check(self, header: Header) -> None:
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

    async def _send(self) -> None:
        while True:
            while not self._queue:
                self._more = trio.Event()
                await self._more.wait()
            header, refused = self._queue.popleft()
            self._sending = header.request
            demand = bool(header.flags & Flag.DEMAND)
            if not self._chunks.verified(header.chunk, header.offset, header.length):
                await self._answer(header, Kind.NOT_HAVE, 0)
            elif refused or not self._slots.acquire(demand=demand):
                await self._answer(header, Kind.BUSY, int(self._slots.retry_after_s * 1000))
            else:
                begin = trio.current_time()
                try:
                    await self._transfer(header)
                finally:
                    self._slots.release(trio.current_time() - begin)
            self._sending = None
            self._cancelled.discard(header.request)

    async def _answer(self, header: Header, kind: Kind, status: int) -> None:
        frame = Header(kind, header.request, header.chunk, status=status)
        await send_all(self._sock, frame.encode(), self._timeout_s)

    async def _transfer(self, header: Header) -> None:
        # ours while it waits for its turns, however many files others open meanwhile
        file = self._chunks.manifest.extent(header.chunk).file
        descriptor = os.dup(self._chunks.descriptor(file))
        try:
            await self._blocks(header, descriptor)
        except EndOfStream:
            log.warning("cache file was cut chunk=%d", header.chunk)
            raise
        finally:
            os.close(descriptor)

    async def _blocks(self, header: Header, descriptor: int) -> None:
        manifest = self._chunks.manifest
        extent = manifest.extent(header.chunk)
        digests = b""
        if manifest.block_count(header.chunk) > 1:
            digests = self._chunks.digests(header.chunk)
        at, end = header.offset, header.offset + header.length
        while at < end:
            if header.request in self._cancelled:
                await self._answer(header, Kind.END, EndStatus.CANCELLED)
                return
            size = min(manifest.block_bytes, end - at)
            flags = Flag.DIGESTS if digests else Flag.NONE
            frame = Header(Kind.DATA, header.request, header.chunk, at, size, flags, len(digests))
            await send_all(self._sock, frame.encode() + digests, self._timeout_s, socket.MSG_MORE)
            digests = b""
            await send_file(
                self._sock, descriptor, extent.offset + at, size, self._timeout_s, self._throttle
            )
            self._served.bytes += size
            at += size
            await self._turns.moved(size)
        await self._answer(header, Kind.END, EndStatus.DONE)
