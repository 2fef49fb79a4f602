"""Messages that wait to be written to one session. Full means the other side does not read."""

import trio

from p2p.connection import FrameStream
from p2p.messages import Message

OUTBOX_MESSAGES = 4096  # 50 nodes x a batch of haves each 50 ms is 20 a second: minutes of silence


class Outbox:
    """A bounded queue in front of a `FrameStream`. `put` never waits: what the kernel does not take
    at once is written by `run`, so that most messages cost one system call and wake no task."""

    def __init__(self) -> None:
        self._frames: FrameStream | None = None
        self._queue: list[Message] = []
        self._rest = b""
        self._filled = trio.Event()
        self._written = trio.Event()
        self._writing = False
        self.overflowed = False
        self._scope = trio.CancelScope()

    async def drained(self) -> None:
        """Return when everything was handed to the socket."""
        while self._queue or self._rest or self._writing:
            await self._written.wait()

    def put(self, *batch: Message) -> None:
        """Send or queue messages; over the bound the session is given up, in `run`."""
        if self._frames is None or self._queue or self._rest or self._writing:
            self._queue.extend(batch)
        else:
            self._rest = self._frames.send_now(batch)
        if self._queue or self._rest:
            if len(self._queue) > OUTBOX_MESSAGES:
                self.overflowed = True
                self._scope.cancel()
            self._filled.set()

    async def run(self, frames: FrameStream) -> None:
        """Write what comes, for ever.

        Raises:
          trio.BrokenResourceError: the other side is gone, or lets us wait with a full queue.
        """
        self._frames = frames
        with self._scope:  # a full queue ends a write that the other side does not take, too
            await self._write(frames)
        raise trio.BrokenResourceError("the other side does not read")

    async def _write(self, frames: FrameStream) -> None:
        while True:
            if not (self._queue or self._rest):
                self._filled = trio.Event()
                await self._filled.wait()
            batch, self._queue = self._queue, []
            rest, self._rest = self._rest, b""
            self._writing = True
            await frames.send(*batch, rest=rest)
            self._writing = False
            self._written.set()
            self._written = trio.Event()
