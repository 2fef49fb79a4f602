"""A worker's leave to send requests to the origin, while a budget is in force.

Each request is asked for right before it would be sent, so that what the tracker paces is what the
origin sees. Without a budget nothing of this happens.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from node import jobs
from node.chunks import Sink
from node.http_get import Answer


class _Asked:
    """A question to the control process, and its answer."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.answer: jobs.Allowed | None = None


class Permits:
    """Asks the control process before each request.

    Args:
      report: takes the questions; answers come to `answered`.
    """

    def __init__(self, report: Callable[[jobs.Report], None]) -> None:
        self.limited = False
        self._report = report
        self._number = 0
        self._asked: dict[int, _Asked] = {}

    def __repr__(self) -> str:
        return f"<Permits limited={self.limited} waiting={len(self._asked)}>"

    async def ask(self, chunk: int, size_bytes: int, *, spare: bool = False) -> bool:
        """Wait for leave to ask for so much of a chunk; `spare`: now or not at all."""
        if not self.limited:
            return True
        self._number += 1
        number, asked = self._number, _Asked()
        self._asked[number] = asked
        try:
            self._report(jobs.AllowanceWanted(number, chunk, size_bytes, spare))
            await asked.came.wait()
        finally:
            del self._asked[number]
        assert asked.answer is not None
        await trio.sleep(asked.answer.wait_s)
        return asked.answer.granted

    def answered(self, answer: jobs.Allowed) -> None:
        """The control process says when, or no."""
        asked = self._asked.get(answer.number)
        if asked is not None:
            asked.answer = answer
            asked.came.set()
        elif answer.granted:  # who asked is gone meanwhile
            self._report(jobs.Unused(answer.bytes, 1))

    @asynccontextmanager
    async def request(self, chunk: int, sink: Sink, answer: Answer) -> AsyncIterator[None]:
        """One request for the rest of a range; what it did not use is given back."""
        limited, begin, size = self.limited, sink.position, sink.end - sink.position
        await self.ask(chunk, size)
        try:
            yield
        finally:
            if limited:
                unused, unsent = size - (sink.position - begin), not answer.sent
                if unused > 0 or unsent:
                    self._report(jobs.Unused(max(0, unused), int(unsent)))
