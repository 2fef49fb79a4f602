"""What readers want: what they are blocked on, what they read next, what they have read. Pure.

Each open file or stream is a reader with a number. It has at most one need (bytes that it is
blocked on), one window (bytes that it reads soon), a plan (ranges that it will read some time) and
a cursor: the chunk where it reads. Ranges are (file, start, end) in bytes of a file of the
manifest; what lies outside of it is cut off.

    needs      in the order in which readers were blocked    before everything
    windows    nearest first, one chunk of each in turn      before prefetch
    plans      in the order they were told                   after windows
    cursors    where prefetch goes on                        instead of the model's beginning
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from math import inf
from typing import NamedTuple

from p2p.bitfield import Bitfield
from p2p.ids import Chunk
from p2p.manifest import Manifest

PIECES, PIECE_LEAST = 8, 128 * 1024  # less is a matter of round trips, not of bytes
AT_ONCE = 8  # chunks of one need that are asked for together; a larger one is served from its start
SOON = 64  # chunks ahead of all readers together, as many as prefetch looks at
PATIENCE_S = 0.25  # a block of a chunk that comes beside a dozen others, at 1 Gbit/s
CURSOR_S = 0.5  # the chunk where a reader has read is not dropped for so long


class Part(NamedTuple):
    """Bytes of a chunk, from the start of a block to the end of one."""

    chunk: Chunk
    start: int
    end: int

    def covers(self, other: "Part") -> bool:
        """All of the other one's bytes are of this one."""
        return self.chunk == other.chunk and self.start <= other.start and other.end <= self.end

    def pieces(self, block_bytes: int) -> "list[Part]":
        """The same in a few pieces, which come faster together: a connection that was idle begins
        slowly, and one among many gets a small share of a link."""
        size = max(PIECE_LEAST, -(-(self.end - self.start) // PIECES))
        size = -(-size // block_bytes) * block_bytes
        places = range(self.start, self.end, size)
        return [Part(self.chunk, at, min(at + size, self.end)) for at in places]


@dataclass(slots=True)
class _Reader:
    """One open file or stream."""

    need: tuple[Part, ...] = ()
    since: float = 0.0
    """when it became blocked"""
    window: range = range(0)
    plan: dict[Chunk, None] = field(default_factory=dict)
    cursor: Chunk | None = None
    read_at: float = 0.0


class Needs:
    """All readers of one model at one node."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._readers: dict[int, _Reader] = {}
        self._blocked: dict[int, None] = {}
        """readers with a need, in the order of their needs"""
        self.read_at: dict[Chunk, float] = {}
        """when a chunk was last read from, as far as readers tell"""

    def __repr__(self) -> str:
        return f"<Needs readers={len(self._readers)} blocked={len(self._blocked)}>"

    def __len__(self) -> int:
        """Programs that read: what plans for the node itself has a number below 0."""
        return sum(number >= 0 for number in self._readers)

    def _reader(self, number: int) -> _Reader:
        return self._readers.setdefault(number, _Reader())

    def _chunks(self, file: int, start: int, end: int) -> range:
        manifest = self._manifest
        if not 0 <= file < len(manifest.files):
            return range(0)
        start, end = max(0, start), min(end, manifest.files[file].size_bytes)
        if start >= end:
            return range(0)
        first, size = manifest.chunks_of(file).start, manifest.chunk_bytes
        return range(first + start // size, first + (end - 1) // size + 1)

    def _parts(self, file: int, start: int, end: int) -> tuple[Part, ...]:
        size, found = self._manifest.block_bytes, []
        for chunk in self._chunks(file, start, end):
            extent = self._manifest.extent(chunk)
            begin = max(0, start - extent.offset) // size * size
            stop = -(-min(extent.length, end - extent.offset) // size) * size
            found.append(Part(chunk, begin, min(stop, extent.length)))
        return tuple(found)

    # -- what readers say -------------------------------------------------------------------------

    def need(self, number: int, file: int, start: int, end: int, now: float) -> None:
        """The reader is blocked on these bytes; its former need is over."""
        reader = self._reader(number)
        reader.need, reader.since = self._parts(file, start, end), now
        self._blocked.pop(number, None)
        if reader.need:
            self._blocked[number] = None
            reader.cursor = reader.need[0].chunk

    def satisfied(self, number: int, now: float) -> None:
        """It is blocked no more."""
        reader = self._readers.get(number)
        if reader is not None and self._blocked.pop(number, "") is None:
            for part in reader.need:
                self.read_at[part.chunk] = now
            reader.need, reader.read_at = (), now

    def window(self, number: int, file: int, start: int, end: int) -> None:
        """It will read these bytes soon; replaces the former window."""
        reader = self._reader(number)
        reader.window = self._chunks(file, start, end)
        if reader.window:
            reader.cursor = reader.window.start

    def will_need(
        self, number: int, ranges: Iterable[tuple[int, int, int]], held: Bitfield
    ) -> None:
        """It will read these bytes some time; what is held is left out."""
        plan = self._reader(number).plan
        for file, start, end in ranges:
            plan.update((c, None) for c in self._chunks(file, start, end) if c not in held)

    def read(self, number: int, file: int, start: int, end: int, now: float) -> None:
        """It was served these bytes."""
        chunks = self._chunks(file, start, end)
        if not chunks:
            return
        reader = self._reader(number)
        reader.cursor, reader.read_at = chunks[-1], now
        for chunk in chunks:
            self.read_at[chunk] = now

    def closed(self, number: int) -> None:
        """The reader is gone."""
        self._readers.pop(number, None)
        self._blocked.pop(number, None)

    # -- what follows -----------------------------------------------------------------------------

    @property
    def attended(self) -> bool:
        """Somebody reads: there is more than plans."""
        return any(reader.cursor is not None for reader in self._readers.values())

    @property
    def blocked(self) -> bool:
        """A reader waits."""
        return bool(self._blocked)

    def parts(self) -> list[Part]:
        """What readers are blocked on; of one chunk one part that covers all of them."""
        found: dict[Chunk, Part] = {}
        for number in self._blocked:
            for part in self._readers[number].need[:AT_ONCE]:
                known = found.get(part.chunk, part)
                start, end = min(known.start, part.start), max(known.end, part.end)
                found[part.chunk] = Part(part.chunk, start, end)
        return list(found.values())

    def patient_until(self, chunk: Chunk) -> float:
        """Until when a request for the whole chunk, under way already, is the best for the readers
        that need it: they read in order, and it is among what comes to them anyway."""
        until = inf
        for number in self._blocked:
            reader = self._readers[number]
            if any(part.chunk == chunk for part in reader.need[:AT_ONCE]):
                until = min(until, reader.since + PATIENCE_S if chunk in reader.window else -inf)
        return until

    def near(self) -> list[Chunk]:
        """Chunks of windows, the nearest of each reader first; at most SOON of them."""
        windows = [r.window[:SOON] for r in self._readers.values() if r.window]
        found = {c: None for row in zip_longest(*windows) for c in row if c is not None}
        return list(found)[:SOON]

    def soon(self) -> list[Chunk]:
        """The same, and then chunks of plans; at most SOON in all."""
        if not self._readers:
            return []
        found = dict.fromkeys(self.near())
        for reader in self._readers.values():
            if len(found) < SOON:
                found.update(dict.fromkeys(islice(reader.plan, SOON - len(found))))
        return list(found)[:SOON]

    def cursors(self) -> list[Chunk]:
        """Where readers are, each place once."""
        places = [r.cursor for r in self._readers.values() if r.cursor is not None]
        return list(dict.fromkeys(places))

    def guarded(self, now: float) -> dict[Chunk, None]:
        """Chunks under a reader: of what it is blocked on, and where it has just read."""
        found = dict.fromkeys(part.chunk for part in self.parts())
        for reader in self._readers.values():
            if reader.cursor is not None and now < reader.read_at + CURSOR_S:
                found[reader.cursor] = None
        return found

    def came(self, chunk: Chunk) -> None:
        """The chunk is here: no plan has to look for it any more."""
        for reader in self._readers.values():
            reader.plan.pop(chunk, None)

    def forget(self, chunk: Chunk) -> None:
        """The chunk was dropped."""
        self.read_at.pop(chunk, None)


def ahead_of(cursors: Sequence[Chunk], state: bytearray, most: int) -> list[Chunk]:
    """Missing chunks (state 0) from each cursor on, in file order, one of each in turn."""
    found: dict[Chunk, None] = {}
    at = list(cursors)
    while at and len(found) < most:
        going = []
        for place in at:
            chunk = state.find(0, place)
            if chunk >= 0:
                found[chunk] = None
                going.append(chunk + 1)
        at = going
    return list(found)[:most]
