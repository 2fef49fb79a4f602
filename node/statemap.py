"""Which blocks are verified, one byte each, mapped by the control process, workers and readers.

Layout of CACHE/<manifest id>/state (little-endian, as the machine is):

    offset  size
         0     8  magic        "SHOALMAP"
         8     4  version      1
        12     4  generation   grows with each start of the node
        16     4  chunks
        20     4  stride       blocks of a full chunk
        24     4  evictions    grows with each chunk that is dropped, after its bytes are 0 and
                  before its space is given back: who read meanwhile may have read a hole
        32     4  retired      1: the node has stopped or begun anew; nothing changes here any more
        64   256  64 wake counters of 4 bytes: counter `chunk % 64` grows after each change of a
                  block's byte, so that a reader can wait on it (futex)
      4096     -  one byte a block, at chunk * stride + block: 0 missing, 1 verified, 2 relayed: it
                  matches digests that a peer sent, whose pin is not confirmed: passed on, not read

Who waits on a counter calls futex(2) with FUTEX_WAIT, not private; who changes it wakes all.

One writer a byte: the worker that a chunk was given to. Bytes are plain stores; a reader that sees
1 may read the block from the cache file.
"""

import ctypes
import mmap
import os
import struct
from pathlib import Path

from node import futex
from p2p.errors import StoreError
from p2p.ids import Chunk

MAGIC = b"SHOALMAP"
VERSION = 1
BODY = 4096
EVICTIONS_AT = 24
RETIRED_AT = 32
COUNTERS_AT = 64
COUNTERS = 64
_HEAD = struct.Struct("<8sIIII")
_COUNTER = struct.Struct("<I")

MISSING, VERIFIED, RELAYED = 0, 1, 2
_UNREADABLE = (bytes([MISSING]), bytes([RELAYED]))


class StateMap:
    """The mapped file. Made by the control process (`create`), opened by everyone else."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        anchor = ctypes.c_char.from_buffer(self._map)
        self._anchor: ctypes.c_char | None = anchor
        self._address = ctypes.addressof(anchor)
        magic, version, self.generation, self.chunks, self.stride = _HEAD.unpack_from(self._map)
        if magic != MAGIC or version != VERSION:
            raise StoreError(f"state map {path} is of an unknown version")

    @classmethod
    def create(cls, path: Path, chunks: int, stride: int) -> "StateMap":
        """A map with all blocks missing; an old one of the same path is retired and replaced."""
        generation = (cls.retire_stale(path) + 1) & 0xFFFF_FFFF
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(_HEAD.pack(MAGIC, VERSION, generation, chunks, stride))
            # a hole in a mapping is a SIGBUS on a full disk: take the space now, as ENOSPC
            file.flush()
            os.posix_fallocate(file.fileno(), 0, BODY + chunks * stride)
        temporary.replace(path)
        return cls(path)

    @classmethod
    def retire_stale(cls, path: Path) -> int:
        """Tell the readers of a node that was killed; its generation, 0 if there is none."""
        try:
            stale = cls(path)
        except (OSError, ValueError, struct.error, StoreError):  # none, or cut, or of another kind
            return 0
        stale.retire()
        stale.close()
        return int(stale.generation)

    def set(self, chunk: Chunk, block: int, value: int) -> None:
        """Change one block's byte, then wake its counter."""
        self._map[BODY + chunk * self.stride + block] = value
        self._wake(chunk)

    def set_chunk(self, chunk: Chunk, blocks: int, value: int) -> None:
        """Change the bytes of a chunk's blocks."""
        start = BODY + chunk * self.stride
        self._map[start : start + blocks] = bytes([value]) * blocks
        self._wake(chunk)

    def evict(self, chunk: Chunk, blocks: int) -> None:
        """The chunk is about to be dropped. The caller gives its space back after this."""
        self.set_chunk(chunk, blocks, MISSING)
        self._grow(EVICTIONS_AT)

    @property
    def evictions(self) -> int:
        """Compare before and after a read: a change means that the bytes may be a hole's."""
        return int(_COUNTER.unpack_from(self._map, EVICTIONS_AT)[0])

    def retire(self) -> None:
        """Tell readers that nothing changes here any more, and wake those that wait."""
        _COUNTER.pack_into(self._map, RETIRED_AT, 1)
        for counter in range(COUNTERS):
            self._wake(counter)

    @property
    def retired(self) -> bool:
        """The node that wrote this map has stopped."""
        return bool(_COUNTER.unpack_from(self._map, RETIRED_AT)[0])

    def _wake(self, chunk: Chunk) -> None:
        at = COUNTERS_AT + 4 * (chunk % COUNTERS)
        self._grow(at)
        futex.wake(self._address + at)

    def counter(self, chunk: Chunk) -> int:
        """The chunk's wake counter: read it, then look at the blocks, then `wait` with it."""
        return int(_COUNTER.unpack_from(self._map, COUNTERS_AT + 4 * (chunk % COUNTERS))[0])

    def wait(self, chunk: Chunk, seen: int, timeout_s: float) -> None:
        """Sleep while the chunk's counter is `seen`, at most so long; may return for no reason."""
        futex.wait(self._address + COUNTERS_AT + 4 * (chunk % COUNTERS), seen, timeout_s)

    def wake_all(self) -> None:
        """Let everyone who waits look again, though nothing has changed here."""
        for counter in range(COUNTERS):
            futex.wake(self._address + COUNTERS_AT + 4 * counter)

    def _grow(self, at: int) -> None:
        (count,) = _COUNTER.unpack_from(self._map, at)
        _COUNTER.pack_into(self._map, at, (count + 1) & 0xFFFF_FFFF)

    def find_missing(self, first: int, end: int) -> int:
        """The first one of the blocks `first` to `end` (not included), counted through the whole
        map (chunk * stride + block), that may not be read; -1 if all are verified."""
        limit, found = BODY + end, -1
        for state in _UNREADABLE:
            at = self._map.find(state, BODY + first, limit)
            if at >= 0:
                limit, found = at, at - BODY
        return found

    def blocks(self, chunk: Chunk, first: int, end: int) -> bytes:
        """The bytes of blocks `first` to `end`, not included."""
        start = BODY + chunk * self.stride
        return self._map[start + first : start + end]

    def close(self) -> None:
        """Unmap. Nobody may wait here any more."""
        self._anchor = None
        self._map.close()
