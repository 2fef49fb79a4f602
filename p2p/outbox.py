"""Messages that wait to be written to one session. Full means the other side does not read."""

from math import inf

import trio

from p2p.connection import FrameStream
from p2p.messages import Message

OUTBOX_MESSAGES = 4096  # 50 nodes x a batch of haves each 50 ms is 20 a second: minutes of silence


class Outbox:
    """A bounded queue in front of a `FrameStream`. `put` never waits."""

    def __init__(self) -> None:
        self._queue: list[Message] = []
        self._filled = trio.Event()
        self._written = trio.Event()
        self._writing = False
        self.overflowed = False

    async def drained(self) -> None:
        """Return when everything was handed to the socket."""
        while self._queue or self._writing:
            await self._written.wait()

    def put(self, *batch: Message) -> None:
        """Queue messages; over the bound the session is given up, in `run`."""
        self._queue.extend(batch)
        self.overflowed = self.overflowed or len(self._queue) > OUTBOX_MESSAGES
        self._filled.set()

    async def run(
        self, frames: FrameStream, idle: Message | None = None, idle_s: float = inf
    ) -> None:
        """Write what comes, for ever; `idle` is sent after `idle_s` of silence.

        Raises:
          trio.BrokenResourceError: the other side is gone, or lets us wait with a full queue.
        """
        while True:
            if not self._queue:
                self._filled = trio.Event()
                with trio.move_on_after(idle_s):
                    await self._filled.wait()
            if self.overflowed:
                raise trio.BrokenResourceError("the other side does not read")
            batch, self._queue = self._queue, []
            if not batch and idle is not None:
                batch = [idle]
            if batch:
                self._writing = True
                await frames.send(*batch)
                self._writing = False
                self._written.set()
                self._written = trio.Event()
