"""Room in a bounded cache: what may come, and what has to go for it. Pure.

A chunk's space is taken before its transfer begins, whole, and counts until its bytes are punched
out of the cache file; so the cache is never larger than its limit. What goes first, of what is
neither kept nor under a reader nor being transferred:

    pieces of chunks that nobody wants any more
    what was read, the longest ago first
    what was not read yet, the last in the model's order first
    what a reader will read soon, the last first (only for a blocked reader)

and of all but the last row, what no other node holds goes after everything that another one holds.
Prefetch makes nothing go but pieces and what has expired, a plan nothing that was not read yet: one
that is larger than the cache would push itself out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf

from p2p.ids import Chunk
from p2p.manifest import Manifest

PAGE = 4096
LEAST_CHUNKS = 4  # a need, its hedge's neighbour, one that is read and one that goes
AT_ONCE = 64  # a part of this of the cache goes together, as finding what goes looks at all of it
SPARE_CHUNKS = 2  # prefetch leaves room for so many needs
TICK_S = 1.0  # how exactly what has expired is looked for


Key = tuple[int, int, int, float]
"""Row of the table above, nobody else holds it, not read yet, and its place among such."""


class Urge(IntEnum):
    """How much a chunk is wanted."""

    PREFETCH = 0
    PLAN = 1
    SOON = 2
    NEED = 3


@dataclass(frozen=True, slots=True)
class Situation:
    """What the swarm knows at the moment of a decision.

    Attributes:
      guarded: chunks under a reader.
      soon: chunks of windows and plans, the next one first.
      read_at: when chunks were last read from.
      held: whether a chunk is whole here.
      elsewhere: whether a peer is known to hold it.
      busy: being hashed, or sent out of the way already.
    """

    guarded: dict[Chunk, None]
    soon: Sequence[Chunk]
    read_at: dict[Chunk, float]
    held: Callable[[Chunk], bool]
    elsewhere: Callable[[Chunk], bool]
    busy: Callable[[Chunk], bool]


class Evictor:
    """The space of one model's cache.

    Args:
      limit_bytes: None, or at least the model: nothing ever goes.
      expire_s: what was read goes so long after its last use; None: only when room is needed.
    """

    def __init__(self, manifest: Manifest, limit_bytes: int | None, expire_s: float | None) -> None:
        self._manifest = manifest
        self._rank = {chunk: place for place, chunk in enumerate(manifest.order)}
        self.limit_bytes = limit_bytes
        self.evicts = limit_bytes is not None and limit_bytes < space_bytes(manifest)
        self._expire_s = expire_s if self.evicts else None
        self._room = (limit_bytes or 0) - _extents_bytes(manifest)
        self._taken: dict[Chunk, None] = {}
        self._transfers: dict[Chunk, int] = {}
        self._going: dict[Chunk, None] = {}
        self._had = bytearray(manifest.chunk_count if self.evicts else 0)
        self.kept: dict[Chunk, None] = {}
        self.used_bytes = 0
        self.evicted_chunks = 0
        self.again_bytes = 0
        """of chunks that came once more after they had been dropped"""
        self._look_at = inf

    def __repr__(self) -> str:
        return f"<Evictor used={self.used_bytes} limit={self.limit_bytes}>"

    def _size(self, chunk: Chunk) -> int:
        return -(-self._manifest.extent(chunk).length // PAGE) * PAGE

    # -- what is here -----------------------------------------------------------------------------

    def occupy(self, chunks: Iterable[Chunk]) -> None:
        """They are in the cache already, at least in part."""
        for chunk in chunks if self.evicts else ():
            self._take(chunk)

    def _take(self, chunk: Chunk) -> None:
        if chunk not in self._taken:
            self._taken[chunk] = None
            self.used_bytes += self._size(chunk)

    def came(self, chunk: Chunk, now: float) -> None:
        """The chunk is whole."""
        if self.evicts:
            self._take(chunk)
            self.again_bytes += self._manifest.extent(chunk).length if self._had[chunk] else 0
            self._had[chunk] = 1
            self._look_at = min(self._look_at, now + TICK_S)

    def began(self, chunk: Chunk) -> None:
        """A transfer into the chunk has begun."""
        if self.evicts:
            self._transfers[chunk] = self._transfers.get(chunk, 0) + 1

    def ended(self, chunk: Chunk) -> None:
        """A transfer has ended; nothing more of it is written."""
        if self.evicts:
            count = self._transfers.get(chunk, 0) - 1
            if count > 0:
                self._transfers[chunk] = count
            else:
                self._transfers.pop(chunk, None)

    def dropped(self, chunk: Chunk) -> None:
        """Its space is free."""
        if self._taken.pop(chunk, "") is None:
            self.used_bytes -= self._size(chunk)
        if self._going.pop(chunk, "") is None:
            self.evicted_chunks += 1

    def going(self, chunk: Chunk) -> bool:
        """It is being dropped."""
        return chunk in self._going

    # -- what may come ----------------------------------------------------------------------------

    @property
    def free_chunks(self) -> int:
        """For how many more chunks prefetch has room now."""
        size = self._manifest.chunk_bytes
        return max(0, (self._room - self.used_bytes) // size - SPARE_CHUNKS)

    def reserve(self, chunk: Chunk, urge: Urge) -> bool:
        """Take the space of a chunk, if it is there."""
        if not self.evicts or chunk in self._taken:
            return chunk not in self._going
        spare = SPARE_CHUNKS * self._manifest.chunk_bytes if urge is Urge.PREFETCH else 0
        if self.used_bytes + self._size(chunk) + spare > self._room:
            return False
        self._take(chunk)
        return True

    def make_room(self, chunks: Sequence[Chunk], urge: Urge, now: Situation) -> list[Chunk]:
        """What has to go so that these may come; they go from now on, and are asked for again when
        that is done. Fewer than enough if nothing else may go."""
        if not self.evicts:
            return []
        wanted = sum(self._size(chunk) for chunk in chunks if chunk not in self._taken)
        leaving = sum(self._size(chunk) for chunk in self._going)
        missing = self.used_bytes - leaving + wanted - self._room
        return self._go(missing, urge, now) if missing > 0 else []

    def _go(self, missing: int, urge: Urge, now: Situation) -> list[Chunk]:
        found, more = [], self._room // AT_ONCE
        for (row, _, unread, _), chunk in self._candidates(urge, now):
            done_with = row == 0 or (row == 1 and not unread)
            if missing <= (-more if done_with else 0):
                break
            found.append(chunk)
            missing -= self._size(chunk)
        self._going.update(dict.fromkeys(found))
        return found

    def _candidates(self, urge: Urge, now: Situation) -> list[tuple[Key, Chunk]]:
        soon = {chunk: place for place, chunk in enumerate(now.soon)}
        found: list[tuple[Key, Chunk]] = []
        for chunk in self._taken:
            if (
                chunk in self._going or chunk in self._transfers or chunk in self.kept
                or chunk in now.guarded or now.busy(chunk)
            ):  # fmt: skip
                continue
            if chunk in soon:
                if urge is Urge.NEED:
                    found.append(((2, 0, 0, -soon[chunk]), chunk))
            elif not now.held(chunk):
                found.append(((0, 0, 0, 0), chunk))
            elif urge is not Urge.PREFETCH:
                only, read = not now.elsewhere(chunk), now.read_at.get(chunk)
                if read is None and urge is Urge.PLAN:
                    continue
                age = (0, read) if read is not None else (1, -self._rank[chunk])
                found.append(((1, only, *age), chunk))
        return sorted(found)

    def expired(self, situation: Situation, now: float) -> list[Chunk]:
        """What goes because nobody has read it for so long, if another node holds it; and, after a
        start with less room than before, what is too much."""
        if not self.evicts or now < self._look_at:
            return []
        self._look_at = now + TICK_S if self._expire_s is not None and self._taken else inf
        if self._expire_s is None:
            return []
        due, soon = now - self._expire_s, set(situation.soon)
        found = [
            chunk
            for chunk in self._taken
            if situation.read_at.get(chunk, inf) <= due and chunk not in soon
            and chunk not in self.kept and chunk not in situation.guarded
            and chunk not in self._going and chunk not in self._transfers
            and situation.held(chunk) and situation.elsewhere(chunk) and not situation.busy(chunk)
        ]  # fmt: skip
        self._going.update(dict.fromkeys(found))
        return found

    def next_deadline(self) -> float:
        """When `expired` is due."""
        return self._look_at

    # -- what stays -------------------------------------------------------------------------------

    def keep(self, chunks: Iterable[Chunk]) -> str:
        """Never drop these; returns why that cannot be, or nothing."""
        kept = {**self.kept, **dict.fromkeys(chunks)}
        wanted = sum(self._size(chunk) for chunk in kept)
        room = max(0, self._room - LEAST_CHUNKS * self._manifest.chunk_bytes)
        if self.evicts and wanted > room:
            return f"{wanted} bytes are to be kept, and the cache has room for {room}"
        self.kept = kept
        return ""

    def let_go(self, chunks: Iterable[Chunk]) -> None:
        """They may be dropped again."""
        for chunk in chunks:
            self.kept.pop(chunk, None)


def _extents_bytes(manifest: Manifest) -> int:
    """What a filesystem may take for its own lists of a large sparse file's pieces."""
    counts = [len(manifest.chunks_of(file)) for file in range(len(manifest.files))]
    return sum(PAGE * (1 + count // 256) for count in counts if count > 4)


def space_bytes(manifest: Manifest) -> int:
    """What the whole model takes."""
    pages = sum(-(-file.size_bytes // PAGE) * PAGE for file in manifest.files)
    return pages + _extents_bytes(manifest)


def least_bytes(manifest: Manifest) -> int:
    """The smallest limit of a cache."""
    return LEAST_CHUNKS * manifest.chunk_bytes + _extents_bytes(manifest)
