"""The ranges that a worker reads from the origin now, and what idle addresses take from busy ones.

Nothing is taken while anything waits for a slot: only an address without any request helps out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from node import jobs
from node.chunks import Sink
from node.nics import Source, Sources, steal
from node.ranges import Tries
from p2p.errors import StoreFull
from p2p.ids import Chunk
from p2p.needs import Part


@dataclass(slots=True, eq=False)
class Span:
    """One range of one chunk on its way: `kind` is the audit log's word for the next request."""

    job: jobs.FetchJob
    sink: Sink
    offset: int
    """of the chunk in its file"""
    tries: Tries
    source: Source
    start: Callable[[int, int, str], None]
    """begins another range of the same chunk"""
    kind: str = "first"
    urgent: bool = False
    """a reader is blocked on it: it waits for no slot"""
    resting: bool = False
    """the origin was refused or broken, and is left alone for a while"""
    request: trio.CancelScope | None = None
    """of the request under way: cancelled, the range goes on from another address"""

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self.sink.end - self.sink.position


class Spans:
    """All ranges of one worker that are not whole yet.

    Args:
      block_bytes: of the manifest: ranges are divided at block borders.
    """

    def __init__(self, sources: Sources, block_bytes: int) -> None:
        self._sources = sources
        self._block_bytes = block_bytes
        self.all: dict[Span, None] = {}
        self._coming: dict[Chunk, list[tuple[int, int]]] = {}
        """chunks whose ranges are to begin, and what readers are in a hurry for meanwhile"""

    def expect(self, chunk: Chunk) -> None:
        """Not all ranges of this chunk have begun: they hear of each hurry when they have."""
        self._coming.setdefault(chunk, [])

    def began(self, chunk: Chunk) -> bool:
        """All have begun, or none will; the answer is as that of `hurry`."""
        waits = [self.hurry(chunk, *late) for late in self._coming.pop(chunk, ())]
        return any(waits)

    def hurry(self, chunk: int, start: int, end: int) -> bool:
        """These bytes of a chunk come next: they are cut out of what is still to come.

        Returns:
          A range has become urgent that may wait for a slot.
        """
        waits = False
        if chunk in self._coming:
            self._coming[chunk].append((start, end))
        for span in [span for span in self.all if span.job.chunk == chunk]:
            sink = span.sink
            first, last = max(start, sink.position), min(end, sink.end)
            if first >= last:
                continue
            if span.request is None and (span.resting or span.urgent):
                span.urgent = True  # the origin is not asked sooner, nor in smaller pieces
                continue
            comes = sink.position + (sink.block_left if span.request is not None else 0)
            begin = first // self._block_bytes * self._block_bytes
            apart = begin >= comes or span.request is None
            if apart and self._cut(span, last, sink.end, "first"):
                self._cut_up(span, begin, last)
            if begin < sink.end and span.request is None:
                span.urgent = waits = True
        return waits

    def _cut_up(self, span: Span, start: int, end: int) -> None:
        """More requests read its last bytes, from `start` on, in pieces; what cannot be begun, and
        the piece that it begins with, is left to it."""
        for piece in reversed(Part(span.job.chunk, start, end).pieces(self._block_bytes)):
            own = piece.start <= span.sink.position
            if own or not self._cut(span, piece.start, piece.end, "urgent"):
                break

    def _cut(self, span: Span, start: int, end: int, kind: str) -> bool:
        """Another request reads its last bytes, from `start` to `end`; False: it cannot begin."""
        if start == end:
            return True
        try:
            span.start(start, end, kind)
        except StoreFull:
            return False
        span.sink.cut(start)
        return True

    def balance(self, now: float) -> None:
        """Measure all addresses, and let an idle one help the range that would end last."""
        self._sources.measure(now)
        busy = [span for span in self.all if span.request is not None]
        if not busy or len(busy) < len(self.all):
            return  # others wait for a slot or for their next try
        idle = self._sources.best(now)
        if idle is None or idle.used:
            return
        fast = idle.share(1)

        def seconds(span: Span) -> float:
            return span.left / max(1.0, span.source.share(span.source.used))

        last = max(busy, key=seconds)
        self._help(last, fast)

    def _help(self, span: Span, fast: float) -> None:
        assert span.request is not None
        sink, slow = span.sink, span.source.share(span.source.used)
        part = steal(span.left, sink.block_left, self._block_bytes, slow, fast)
        if part is None:
            return
        if part.whole:
            span.request.cancel()
            span.request = None
            return
        at, end = sink.end - part.tail_bytes, sink.end
        at += -at % self._block_bytes  # a file's last block is shorter
        if not sink.position + sink.block_left <= at < end:
            return
        self._cut(span, at, end, "steal")


class Memory:
    """A hedge's bytes: they count only when all have come."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.position, self.end = start, start, end
        self.data = memoryview(bytearray(end - start))

    @property
    def complete(self) -> bool:
        """All have come."""
        return self.position >= self.end

    def window(self) -> memoryview:
        """Where the next bytes go."""
        return self.data[self.position - self.start :][: 1 << 20]

    def advance(self, count: int) -> None:
        """`count` bytes are there."""
        self.position += count


Target = Sink | Memory
