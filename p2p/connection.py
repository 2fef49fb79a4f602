"""Frames on trio streams, and the two sides of the handshake carried out. Decides nothing.

Sending is serialised; a send that fails or is cancelled closes the connection, because some of its
bytes may be out (trio: "it may have sent some, all, or none of the requested data").
"""

import os
from collections.abc import Callable, Iterable

import trio

from p2p.errors import Refused, RemoteProtocolError
from p2p.framing import MAX_FRAME, FrameReader, pack
from p2p.handshake import Dialler, Listener
from p2p.messages import Hello, Message, Refuse
from p2p.poller import Poller

RECEIVE_BYTES = 64 * 1024
HANDSHAKE_TIMEOUT_S = 5.0


class FrameStream:
    """Messages over a byte stream. Reads no byte beyond the current frame until `unbounded`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._reader = FrameReader()
        self._exact = True
        self._lock = trio.Lock()
        self.heard_at = trio.current_time()
        """when bytes came last"""

    def unbounded(self) -> None:
        """The peer is known: larger frames and read-ahead are fine from here on."""
        self._reader.limit = MAX_FRAME
        self._exact = False

    def send_now(self, batch: Iterable[Message]) -> bytes:
        """Write what the kernel takes at once; returns the rest, for `send`. Nobody may be in
        `send`. A broken connection takes nothing: `send` will say so."""
        data = b"".join(map(pack, batch))
        try:
            return data[os.write(self.stream.socket.fileno(), data) :]
        except OSError:  # it would have to wait, too
            return data

    async def send(self, *batch: Message, rest: bytes = b"") -> None:
        """Send messages, in order, in one write, after the rest of an earlier one."""
        async with self._lock:
            try:
                await self.stream.send_all(rest + b"".join(map(pack, batch)))
            except BaseException:
                await trio.aclose_forcefully(self.stream)
                raise

    async def receive(self) -> Message | None:
        """The next message, or None at a clean end.

        Raises:
          RemoteProtocolError: a bad frame, or an end in the middle of one.
          trio.BrokenResourceError: the connection broke.
        """
        while True:
            message = self._reader.next_message()
            if message is not None:
                return message
            if self._exact:
                data = await self.stream.receive_some(self._reader.wanted)
            else:
                data = await self._receive_some()
            self.heard_at = trio.current_time()
            if not data:
                if self._reader.mid_frame:
                    raise RemoteProtocolError("the connection ended in the middle of a frame")
                return None
            self._reader.receive_data(data)

    async def _receive_some(self) -> bytes:
        """As the stream's own, at half its cost: a session's next message is hardly ever there."""
        while True:
            descriptor = self.stream.socket.fileno()
            if descriptor < 0:
                raise trio.ClosedResourceError("the connection was closed")
            await trio.lowlevel.wait_readable(descriptor)
            try:
                return os.read(descriptor, RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def each(self, poller: Poller, take: Callable[[Message], None]) -> None:
        """Call `take` with every message until the connection ends cleanly.

        Raises:
          as `receive`, and whatever `take` raises.
        """
        ended, failures = trio.Event(), list[Exception]()

        def ready(_events: int) -> None:
            if ended.is_set():
                return
            try:
                if self._read_on(take):
                    return
            except Exception as error:
                failures.append(error)
            poller.remove(descriptor)
            ended.set()

        descriptor = self.stream.socket.fileno()
        if descriptor < 0:
            raise trio.ClosedResourceError("the connection was closed")
        poller.add(descriptor, ready)
        try:
            self._take_all(take)  # what was read together with the last one that was waited for
            await ended.wait()
        finally:
            if not ended.is_set():
                poller.remove(descriptor)
        for failure in failures:
            raise failure

    def _read_on(self, take: Callable[[Message], None]) -> bool:
        """Read what is there; False at a clean end."""
        try:
            data = os.read(self.stream.socket.fileno(), RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self.heard_at = trio.current_time()
        if not data:
            if self._reader.mid_frame:
                raise RemoteProtocolError("the connection ended in the middle of a frame")
            return False
        self._reader.receive_data(data)
        self._take_all(take)
        return True

    def _take_all(self, take: Callable[[Message], None]) -> None:
        while (message := self._reader.next_message()) is not None:
            take(message)

    async def aclose(self) -> None:
        """Close the stream at once."""
        await trio.aclose_forcefully(self.stream)


async def _expect(frames: FrameStream) -> Message:
    message = await frames.receive()
    if message is None:
        raise RemoteProtocolError("the connection ended during the handshake")
    return message


async def dial(frames: FrameStream, token: bytes, hello: Hello) -> Hello:
    """Carry out the dialling side; returns the other side's hello. No byte after it is read.

    Raises:
      Refused, RemoteProtocolError, trio.BrokenResourceError, trio.TooSlowError
    """
    handshake = Dialler(token, hello)
    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
        await frames.send(handshake.first)
        while handshake.version is None:
            answer = handshake.receive(await _expect(frames))
            if answer is not None:
                await frames.send(answer)
    assert handshake.peer is not None
    return handshake.peer


async def listen(frames: FrameStream, token: bytes, answer: Callable[[Hello], Hello]) -> Hello:
    """Carry out the listening side; `answer` makes our hello for theirs or raises `Refused`.

    A refusal is told to the other side before it is raised.

    Raises:
      Refused, RemoteProtocolError, trio.BrokenResourceError, trio.TooSlowError
    """
    handshake = Listener(token)
    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
        try:
            first = await _expect(frames)
            if not isinstance(first, Hello):
                raise RemoteProtocolError(f"a connection starts with hello, not {first.TYPE}")
            await frames.send(handshake.receive_hello(first, answer(first)))
            await frames.send(handshake.receive_proof(await _expect(frames)))
        except Refused as refusal:
            await frames.send(Refuse(refusal.code, refusal.text))
            raise
    assert handshake.peer is not None
    return handshake.peer
