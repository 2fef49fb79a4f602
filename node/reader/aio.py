"""The same for programs on trio: nothing here blocks the loop.

    async with open_model_async() as model:
        view = await model.read("model.safetensors", 0, 8)
        async with await model.open("model.safetensors") as stream:     # a trio ReceiveStream
            async for data in stream:
                ...

What is here is read at once (in a thread when it is much); only what is missing is waited for, in a
thread too. Cancelled, a wait ends within a quarter of a second in its thread, and at once here.
"""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.reader.model import FileEntry, Model, Progress, Ranges, open_model
from node.reader.source import Source

INLINE_BYTES = 1024 * 1024  # a copy of 0.1 ms; more goes to a thread
RECEIVE_BYTES = 1024 * 1024
WAITERS = 1000  # reads that wait at once, of a process; each has a thread
PROGRESS_S = 0.2

_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("shoal_waiters")


def waiters() -> trio.CapacityLimiter:
    """Of all waits in this run of trio: they must not take the threads of others."""
    try:
        return _limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(WAITERS)
        _limiters.set(limiter)
        return limiter


async def wait_here(source: Source, start: int, end: int) -> None:
    """Wait until all of the range can be read. Several tasks may wait at one place.

    Raises:
      OSError: it cannot be had.
    """
    if source.here(start, end):
        return
    cancelled = threading.Event()
    try:
        await trio.to_thread.run_sync(
            source.wait_beside, start, end, cancelled.is_set,
            abandon_on_cancel=True, limiter=waiters(),
        )  # fmt: skip
    finally:
        cancelled.set()


@asynccontextmanager
async def open_model_async(
    model: str | None = None,
    *,
    socket: Path | str | None = None,
    timeout_s: float | None = None,
) -> AsyncIterator["AsyncModel"]:
    """As `open_model`, as an async context manager.

    Raises:
      OSError, FileNotFoundError, UsageError: as `open_model`.
    """

    def attach() -> Model:
        return open_model(model, socket=socket, timeout_s=timeout_s)

    opened = await trio.to_thread.run_sync(attach, abandon_on_cancel=True, limiter=waiters())
    try:
        yield AsyncModel(opened)
    finally:
        opened.close()


class AsyncModel:
    """See the module. Made by `open_model_async`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __repr__(self) -> str:
        return f"<AsyncModel {self._model!r}>"

    def __iter__(self) -> Iterator[FileEntry]:
        """All files, by path."""
        return iter(self._model)

    @property
    def name(self) -> str:
        """What the swarm calls it."""
        return self._model.name

    @property
    def revision(self) -> str:
        """The manifest's id, in hex."""
        return self._model.revision

    async def open(self, path: str) -> "AsyncFile":
        """A stream of a file's bytes.

        Raises:
          FileNotFoundError, OSError: as `Model.open`.
        """
        await trio.lowlevel.checkpoint()
        return AsyncFile(self._model.source(path))

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> memoryview:
        """As `Model.read`: a view without a copy.

        Raises:
          FileNotFoundError, OSError, ValueError: as `Model.read`.
        """
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"offset {offset} or length {length} is negative")
        source = self._model.source(path)
        try:
            start = min(offset, source.size_bytes)
            end = source.size_bytes if length is None else min(source.size_bytes, start + length)
            await wait_here(source, start, end)
            if source.session.evicts:
                return await trio.to_thread.run_sync(source.view, start, end)
            return source.view(start, end)
        finally:
            source.close()

    def will_need(self, ranges: Ranges) -> None:
        """As `Model.will_need`."""
        self._model.will_need(ranges)

    async def progress(self) -> AsyncIterator[Progress]:
        """What is here, now and whenever it is more; ends when all is."""
        told = None
        while told is None or not told.complete:
            now = self._model.progress()
            if now != told:
                told = now
                yield now
            else:
                await trio.sleep(PROGRESS_S)


class AsyncFile(trio.abc.ReceiveStream):
    """A stream of one file, with a position. For one task at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._closed = False
        self.name = source.path
        self.size_bytes = source.size_bytes

    def seek(self, position: int) -> None:
        """Read from this byte on.

        Raises:
          ValueError: it is negative.
        """
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer, up to the file's end; gives the bytes read.

        Raises:
          OSError: they cannot be had.
          trio.ClosedResourceError: the stream is closed.
        """
        self._check_open()
        start = self._position
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self.size_bytes - start))]
        if len(view) <= INLINE_BYTES and not self._source.session.evicts:
            await wait_here(self._source, start, start + len(view))
            await trio.lowlevel.checkpoint()
            self._source.read_into(view, start)
        else:
            await self._in_thread(view, start)
        self._position = start + len(view)
        return len(view)

    async def _in_thread(self, view: memoryview, start: int) -> None:
        """Piece by piece, so that a cancellation waits for one piece at most."""
        for at in range(0, len(view), 8 * INLINE_BYTES):
            part = view[at : at + 8 * INLINE_BYTES]
            await wait_here(self._source, start + at, start + at + len(part))
            await trio.to_thread.run_sync(
                self._source.read_into, part, start + at, limiter=waiters()
            )

    async def read(self, size: int = -1) -> bytes:
        """So many bytes, or all to the end; fewer at the end.

        Raises:
          OSError, trio.ClosedResourceError: as `readinto`.
        """
        left = max(0, self.size_bytes - self._position)
        buffer = bytearray(left if size < 0 else min(size, left))
        await self.readinto(buffer)
        return bytes(buffer)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, 1 MiB at most by default; empty at the end.

        Raises:
          OSError, trio.ClosedResourceError: as `readinto`.
        """
        return await self.read(RECEIVE_BYTES if max_bytes is None else max_bytes)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def aclose(self) -> None:
        """Nothing more is read."""
        if not self._closed:
            self._closed = True
            self._source.close()
        await trio.lowlevel.checkpoint()
