"""The node's side of its readers: CACHE/reader.sock, and what is said there (`node.reader.wire`).

Readers wait on the state map and read files by themselves; here they learn where those are and what
became of the seal, and say what they lack, which goes to `Demand`.
"""

import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path

import trio

from node.demand import Demand
from node.local import listening
from node.reader import wire
from p2p.errors import RemoteProtocolError
from p2p.framing import MAX_HANDSHAKE_FRAME, StructReader, pack_struct
from p2p.manifest import Manifest
from p2p.messages import MAX_BATCH
from p2p.seal import Seal

log = logging.getLogger(__name__)

RECEIVE_BYTES = 65_536
MAX_FRAME = 16 * MAX_HANDSHAKE_FRAME  # a plan of 4,096 ranges
BACKLOG = 128  # all processes of a tensor-parallel engine at once
QUEUE = 4096  # frames; who takes none for so long has stopped
ATTACH_S = 10.0


class Attach:
    """Serves the readers of one revision.

    Args:
      require_seal: a file may be read only when it is vouched for.
      broken_text: the line for people about a broken file.
    """

    def __init__(self, cache_dir: Path, require_seal: bool) -> None:
        self.path = cache_dir / wire.SOCKET_NAME
        self._require_seal = require_seal
        self._opened = trio.Event()
        self._numbers = count(1)
        self._connections: set[_Connection] = set()
        self._directory = Path()
        self._manifest: Manifest
        self._seal: Seal
        self._demand: Demand
        self._broken_text: Callable[[int], str]

    def __repr__(self) -> str:
        return f"<Attach {str(self.path)!r} readers={len(self._connections)}>"

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; readers that come before the manifest is known wait for it."""
        async with listening(self.path, BACKLOG) as listener:
            task_status.started()
            await trio.serve_listeners(self._serve_one, [listener])

    def opened(
        self, directory: Path, seal: Seal, broken_text: Callable[[int], str],
        manifest: Manifest, demand: Demand,
    ) -> None:  # fmt: skip
        """The store is open in `directory`: from now on readers are attached."""
        self._directory, self._seal, self._broken_text = directory, seal, broken_text
        self._manifest, self._demand = manifest, demand
        self._opened.set()

    def settled(self, file: int) -> None:
        """The seal may have decided about a file."""
        if not self._opened.is_set():
            return
        if file in self._seal.broken:
            self._tell_all(wire.Refused(file, self._broken_text(file)))
        elif self._require_seal and self._seal.vouches(file):
            self._tell_all(wire.Vouched([file]))

    def no_path(self, text: str) -> None:
        """Nobody can give what is missing."""
        self._tell_all(wire.Failed(text[:4096]))

    def _tell_all(self, message: wire.ReaderMessage) -> None:
        for connection in self._connections:
            if connection.attached:
                connection.send(message)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        self._connections.add(connection)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.write)
                await self._converse(connection)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* RemoteProtocolError as group:
            log.warning("a reader is cut off: %s", group.exceptions[0])
        finally:
            self._connections.discard(connection)
            for number in connection.numbers.values():
                self._demand.closed(number)
            await trio.aclose_forcefully(stream)

    async def _converse(self, connection: "_Connection") -> None:
        first = None
        with trio.move_on_after(ATTACH_S):
            first = await connection.receive()
        if not isinstance(first, wire.Attach):
            return
        if first.version != wire.VERSION:
            await connection.deny(f"the node speaks version {wire.VERSION} with its readers")
            return
        await self._opened.wait()
        if first.manifest not in (b"", self._manifest.id):
            await connection.deny("the model has moved to another revision: open it again")
            return
        self._attach(connection)
        while (message := await connection.receive()) is not None:
            self._take(connection, message)

    def _attach(self, connection: "_Connection") -> None:
        files = range(len(self._manifest.files))
        for file in self._seal.broken:
            connection.send(wire.Refused(file, self._broken_text(file)))
        if self._require_seal:
            vouched = [file for file in files if self._seal.vouches(file)]
            for start in range(0, len(vouched), MAX_BATCH):
                connection.send(wire.Vouched(vouched[start : start + MAX_BATCH]))
        connection.send(
            wire.Attached(
                self._manifest.encode(), str(self._directory), self._demand.evicts,
                self._require_seal,
            )
        )  # fmt: skip
        connection.attached = True

    def _take(self, connection: "_Connection", message: wire.ReaderMessage) -> None:
        demand = self._demand
        match message:
            case wire.Need(stream, file, start, end):
                self._check(file, start, end)
                demand.need(self._number(connection, stream), file, start, end)
            case wire.Satisfied(stream):
                demand.satisfied(self._number(connection, stream))
            case wire.Window(stream, file, start, end):
                self._check(file, start, end)
                demand.window(self._number(connection, stream), file, start, end)
            case wire.WillNeed(stream, files, starts, ends):
                if not len(files) == len(starts) == len(ends):
                    raise RemoteProtocolError("will_need has lists of different lengths")
                ranges = list(zip(files, starts, ends, strict=True))
                for one in ranges:
                    self._check(*one)
                demand.will_need(self._number(connection, stream), ranges)
            case wire.Served(stream, file, start, end):
                self._check(file, start, end)
                demand.read(self._number(connection, stream), file, start, end)
            case wire.Closed(stream) if stream in connection.numbers:
                demand.closed(connection.numbers.pop(stream))

    def _check(self, file: int, start: int, end: int) -> None:
        files = self._manifest.files
        if file >= len(files) or not start <= end <= files[file].size_bytes:
            raise RemoteProtocolError(f"bytes {start} to {end} of file {file}: there is no such")

    def _number(self, connection: "_Connection", stream: int) -> int:
        if stream not in connection.numbers:
            if len(connection.numbers) >= wire.MAX_STREAMS:
                raise RemoteProtocolError(f"a reader has more than {wire.MAX_STREAMS} streams")
            connection.numbers[stream] = next(self._numbers)
        return connection.numbers[stream]


class _Connection:
    """One reader process."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = StructReader(wire.CODEC, MAX_FRAME)
        self._send, self._queue = trio.open_memory_channel[bytes](QUEUE)
        self.numbers: dict[int, int] = {}
        """its streams, as `Demand` knows them"""
        self.attached = False

    def send(self, message: wire.ReaderMessage) -> None:
        """Queue a message; who takes none is cut off."""
        try:
            self._send.send_nowait(pack_struct(wire.CODEC, message))
        except trio.WouldBlock:
            self._stream.socket.close()

    async def write(self) -> None:
        """Send what is queued, until cancelled."""
        async for frame in self._queue:
            await self._stream.send_all(frame)

    async def deny(self, text: str) -> None:
        """Say no."""
        await self._stream.send_all(pack_struct(wire.CODEC, wire.Denied(text)))

    async def receive(self) -> wire.ReaderMessage | None:
        """The next message, or None at the end."""
        while (message := self._frames.next_message()) is None:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return None
            self._frames.receive_data(data)
        return message
