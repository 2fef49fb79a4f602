"""A worker's view of the store: chunks in files, verified block by block as bytes come.

A block on its way is in memory: hashed there, while the processor's cache still holds it, and only
then written to its file. So a file never holds a byte that was not verified, and a block that is
verified is never written again. Memory: one block for each transfer under way, and at most
`SPARE_BUFFERS` more that are kept for the next ones (a fresh one costs a page fault for every
4 KiB). Written through a mapping instead, each page was cleared before it was overwritten: 1.2 x
curl's CPU time, and now 1.0 (simulations/RESULTS.md).
"""

import errno
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from node.statemap import MISSING, RELAYED, VERIFIED, StateMap
from p2p.digest import DIGEST_BYTES, block_digest, chunk_pin
from p2p.errors import P2PError, StoreError, StoreFull
from p2p.ids import Chunk
from p2p.manifest import Manifest

OPEN_FILES = 256  # descriptors kept for cache files; a model may have 100,000
SPARE_BUFFERS = 16  # more transfers than that at once are rare
ALLOCATED = 1024  # chunks; a worker has a few dozen under way
_VERIFIED, _RELAYED, _MISSING = (bytes([state]) for state in (VERIFIED, RELAYED, MISSING))
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ChunkMismatch(P2PError):
    """Bytes do not match the pin."""


class Chunks:
    """The store's files, attached to by path.

    Args:
      writing: inside what it gives for a file, no other worker writes to that file. Default: there
        is no other.
    """

    def __init__(
        self,
        directory: Path,
        writing: Callable[[int], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._writing = writing
        self.manifest = Manifest.decode((directory / "manifest").read_bytes())
        self.map = StateMap(directory / "state")
        self._files = directory / "files"
        self._digests = os.open(directory / "digests", os.O_RDWR | os.O_CLOEXEC)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._spare: list[mmap.mmap] = []
        self._allocated: OrderedDict[Chunk, tuple[int, int]] = OrderedDict()
        self._relays: OrderedDict[Chunk, None] = OrderedDict()
        """chunks on their way of which all digests are known"""
        self._waiting: dict[Chunk, dict[Callable[[Chunk], None], None]] = {}

    def close(self) -> None:
        """Close all descriptors."""
        self.map.close()
        os.close(self._digests)
        for descriptor in self._open.values():
            os.close(descriptor)

    def descriptor(self, file: int) -> int:
        """A descriptor of a cache file, valid until the next call."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        path = self._files / self.manifest.files[file].path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:  # published files are read-only; this one is written again
            path.chmod(0o644)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            finally:
                path.chmod(0o444)
        self._open[file] = descriptor
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def digests(self, chunk: Chunk) -> bytes:
        """The digests of all blocks of a held chunk."""
        size = self.manifest.block_count(chunk) * DIGEST_BYTES
        return os.pread(self._digests, size, self._digest_at(chunk))

    def _digest_at(self, chunk: Chunk) -> int:
        return chunk * self.manifest.blocks_per_chunk * DIGEST_BYTES

    def store_digest(self, chunk: Chunk, block: int, digest: bytes) -> None:
        """Keep a verified block's digest, before its byte in the state map says so."""
        os.pwrite(self._digests, digest, self._digest_at(chunk) + block * DIGEST_BYTES)

    def has_digest(self, chunk: Chunk, block: int, digest: bytes) -> bool:
        """It is the digest that is kept of the block."""
        at = self._digest_at(chunk) + block * DIGEST_BYTES
        return os.pread(self._digests, DIGEST_BYTES, at) == digest

    def block_span(self, offset: int, length: int) -> tuple[int, int]:
        """First block and end block of a range."""
        size = self.manifest.block_bytes
        return offset // size, -(-(offset + length) // size)

    def verified(self, chunk: Chunk, offset: int, length: int) -> bool:
        """Every block of the range is verified."""
        first, end = self.block_span(offset, length)
        return not self.map.blocks(chunk, first, end).strip(_VERIFIED)

    def passable(self, chunk: Chunk, offset: int) -> bool:
        """The block may be passed on: it is here, and matches its digest."""
        block = offset // self.manifest.block_bytes
        return self.map.blocks(chunk, block, block + 1)[0] != MISSING

    def passed_digests(self, chunk: Chunk) -> bytes:
        """What is passed on with the first block: all digests; none if they are not known yet."""
        states = self.map.blocks(chunk, 0, self.manifest.block_count(chunk))
        return self.digests(chunk) if chunk in self._relays or MISSING not in states else b""

    def wait(self, chunk: Chunk, call: Callable[[Chunk], None]) -> None:
        """Call this once, when more of the chunk is here, however often it was told to wait. It
        must not raise."""
        self._waiting.setdefault(chunk, {})[call] = None

    def came(self, chunk: Chunk) -> None:
        """More of the chunk is here: whoever waits is called."""
        for call in self._waiting.pop(chunk, ()):
            call(chunk)

    def leave_relays(self, chunk: Chunk) -> None:
        """The origin's bytes replace what peers sent unpinned, which is passed on no more."""
        self._relays.pop(chunk, None)
        for block, state in enumerate(self.map.blocks(chunk, 0, self.manifest.block_count(chunk))):
            if state == RELAYED:
                self.map.set(chunk, block, MISSING)

    def expect(self, chunk: Chunk, digests: bytes, *, pinned: bool) -> None:
        """A peer told the digests of all blocks: keep them, so that blocks can be passed on.

        Args:
          pinned: they make the pin. Otherwise nothing but the sender says that they are right.

        Raises:
          ChunkMismatch: a block that is verified has another digest.
        """
        count = self.manifest.block_count(chunk)
        states = self.map.blocks(chunk, 0, count)
        if states.strip(_MISSING):
            before = self.digests(chunk)
            for block, state in enumerate(states):
                at = slice(block * DIGEST_BYTES, (block + 1) * DIGEST_BYTES)
                if state == MISSING or before[at] == digests[at]:
                    if state == RELAYED and pinned:
                        self.map.set(chunk, block, VERIFIED)
                elif state == VERIFIED:
                    raise ChunkMismatch(f"a digest of chunk {chunk} is not that of its block")
                else:
                    self.map.set(chunk, block, MISSING)
        os.pwrite(self._digests, digests, self._digest_at(chunk))
        self._relays[chunk] = None
        if len(self._relays) > ALLOCATED:
            self._relays.popitem(last=False)

    def settle(self, chunk: Chunk, pin: bytes) -> bytes:
        """Every block is here: the digests, if they make the pin; an empty pin is made by them.
        Otherwise what peers sent unpinned is dropped, and there are none."""
        self._relays.pop(chunk, None)
        count, digests = self.manifest.block_count(chunk), self.digests(chunk)
        states = self.map.blocks(chunk, 0, count)
        if not pin or chunk_pin(digests) == pin:
            if RELAYED in states:
                self.map.set_chunk(chunk, count, VERIFIED)
            return digests
        for block, state in enumerate(states):
            if state == RELAYED:
                self.map.set(chunk, block, MISSING)
        return b""

    def missing_range(self, chunk: Chunk) -> tuple[int, int]:
        """Offset and end, in the chunk, from its first missing block to its last; equal if none."""
        states = self.map.blocks(chunk, 0, self.manifest.block_count(chunk))
        if MISSING not in states:
            return 0, 0
        size = self.manifest.block_bytes
        end = (states.rindex(MISSING) + 1) * size
        return states.index(MISSING) * size, min(end, self.manifest.extent(chunk).length)

    def missing_within(self, chunk: Chunk, start: int, end: int) -> tuple[int, int]:
        """As `missing_range`, of the blocks of these bytes alone."""
        first, last = self.block_span(start, end - start)
        states, size = self.map.blocks(chunk, first, last), self.manifest.block_bytes
        states = states.replace(_RELAYED, _MISSING)
        if MISSING not in states:
            return 0, 0
        end = (first + states.rindex(MISSING) + 1) * size
        start = (first + states.index(MISSING)) * size
        return start, min(end, self.manifest.extent(chunk).length)

    def missing_spans(self, chunk: Chunk) -> list[tuple[int, int]]:
        """Offset and end, in the chunk, of each run of blocks that are not verified."""
        count, size = self.manifest.block_count(chunk), self.manifest.block_bytes
        states, length = self.map.blocks(chunk, 0, count), self.manifest.extent(chunk).length
        states = states.replace(_RELAYED, _MISSING)
        spans, at = [], states.find(MISSING)
        while at >= 0:
            end = states.find(VERIFIED, at)
            end = count if end < 0 else end
            spans.append((at * size, min(end * size, length)))
            at = states.find(MISSING, end)
        return spans

    def allocate(self, chunk: Chunk, start: int = 0, end: int | None = None) -> None:
        """Take the space of a chunk, or of a part of it, now, so that its lack is known before its
        bytes come. Of a single block one write takes it, or fails.

        Raises:
          StoreFull: there is none.
        """
        extent = self.manifest.extent(chunk)
        end = extent.length if end is None else end
        before = self._allocated.get(chunk, (0, 0))
        if end - start <= self.manifest.block_bytes or (before[0] <= start and end <= before[1]):
            return  # tmpfs clears what is allocated twice: a third of a transfer's CPU time
        try:
            with self._writing(extent.file):
                os.posix_fallocate(self.descriptor(extent.file), extent.offset + start, end - start)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StoreFull(f"no space for chunk {chunk}: {error.strerror}") from error
            raise
        self._allocated[chunk] = (start, end)
        if len(self._allocated) > ALLOCATED:
            self._allocated.popitem(last=False)

    def dropped(self, chunk: Chunk) -> None:
        """Its space is given back: it has to be allocated again."""
        self._allocated.pop(chunk, None)
        self._relays.pop(chunk, None)

    def write(self, chunk: Chunk, offset: int, data: memoryview) -> None:
        """Bytes of a chunk, into space that was allocated.

        Raises:
          StoreFull: the filesystem wants more than that.
          StoreError: they cannot be written.
        """
        extent = self.manifest.extent(chunk)
        descriptor, at = self.descriptor(extent.file), extent.offset + offset
        try:
            with self._writing(extent.file):
                while data:
                    count = os.pwrite(descriptor, data, at)
                    data, at = data[count:], at + count
        except OSError as error:
            kind = StoreFull if error.errno in NO_SPACE else StoreError
            raise kind(f"chunk {chunk} cannot be written: {error.strerror}") from error

    def take_buffer(self) -> mmap.mmap:
        """Memory for one block, page-aligned; the last one given back, which is still in cache."""
        return self._spare.pop() if self._spare else mmap.mmap(-1, self.manifest.block_bytes)

    def give_buffer(self, buffer: mmap.mmap) -> None:
        """Nobody writes into it any more."""
        if len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)

    def block_length(self, chunk: Chunk, block: int) -> int:
        """Bytes of a block: fewer than all only at a file's end."""
        size = self.manifest.block_bytes
        return min(size, self.manifest.extent(chunk).length - block * size)

    def read_block(self, chunk: Chunk, block: int) -> bytes:
        """A block as it is in the cache now."""
        extent = self.manifest.extent(chunk)
        at = extent.offset + block * self.manifest.block_bytes
        return os.pread(self.descriptor(extent.file), self.block_length(chunk, block), at)

    def verified_block(self, chunk: Chunk, block: int) -> bytes | None:
        """A verified block's bytes; None if they do not match their digest any more."""
        data = self.read_block(chunk, block)
        at = block * DIGEST_BYTES
        return data if block_digest(data) == self.digests(chunk)[at : at + DIGEST_BYTES] else None

    def check(self, chunk: Chunk, block: int) -> bytes:
        """The digest of a block as it is in the cache now."""
        extent, buffer = self.manifest.extent(chunk), self.take_buffer()
        at = extent.offset + block * self.manifest.block_bytes
        with memoryview(buffer) as view, view[: self.block_length(chunk, block)] as data:
            count = os.preadv(self.descriptor(extent.file), [data], at)
            digest = block_digest(data[:count])
        self.give_buffer(buffer)
        return digest


class Sink:
    """One range of a chunk as it arrives in order.

    Receive into `window()`, tell `advance` how much came; each block is verified when it is whole,
    and only then written and marked. Blocks that are verified by then are never written.

    Args:
      pin: what the digests of all blocks must make (see `expect`), or, of a chunk of one block,
        its own digest. None: the bytes themselves are the authority (origin). Empty: not known;
        what `expect` is told makes it.
      span: offset and end in the chunk, at block borders; default: from the first missing block to
        the last.
      checksum: the store's checksum of a block, computed while it is in cache, into `crcs`.
    """

    def __init__(
        self,
        chunks: Chunks,
        chunk: Chunk,
        pin: bytes | None,
        span: tuple[int, int] | None = None,
        checksum: Callable[[memoryview], int] | None = None,
        crcs: dict[int, int] | None = None,
    ) -> None:
        self.chunk = chunk
        self.leased = True
        """what comes is progress of a lease"""
        self.duplicate_bytes = 0
        self.pin = pin
        self._chunks = chunks
        self._mark = VERIFIED if pin is None or pin else RELAYED
        self._checksum = checksum
        self._crcs = {} if crcs is None else crcs
        self._expected: bytes | None = None
        self._expected_block = b""
        self.start, self.end = span or chunks.missing_range(chunk)
        chunks.allocate(chunk, self.start, self.end)
        self.position = self.start
        self._buffer = chunks.take_buffer()
        self._view = memoryview(self._buffer)
        self._enter_block()

    def expect(self, digests: bytes) -> None:
        """The digests of all blocks came.

        Raises:
          ChunkMismatch: they do not make the pin, or are not those of blocks that are here.
        """
        blocks, pin = self._chunks.manifest.block_count(self.chunk), chunk_pin(digests)
        if len(digests) != blocks * DIGEST_BYTES or (self.pin and pin != self.pin):
            raise ChunkMismatch(f"the digests of chunk {self.chunk} do not match its pin")
        self._chunks.expect(self.chunk, digests, pinned=bool(self.pin))
        self._expected, self.pin = digests, pin

    def expect_block(self, digest: bytes) -> None:
        """The digest of the next block alone came: nothing but the sender says that it is right."""
        self._expected_block = digest
        self._mark = RELAYED

    def _enter_block(self) -> None:
        size = self._chunks.manifest.block_bytes
        self._block = self.position // size
        self._block_start = self._block * size
        self._block_end = min(self._block_start + size, self.end)

    def window(self) -> memoryview:
        """Where the next bytes go: to the end of the current block at most."""
        start = self._block_start
        return self._view[self.position - start : self._block_end - start]

    def advance(self, count: int) -> None:
        """`count` bytes are there; a block that is whole is verified and written.

        Raises:
          ChunkMismatch: the block is not what it should be. Nothing of it counts.
          StoreError: it cannot be written.
        """
        self.position += count
        if self.position < self._block_end:
            return
        state = self._chunks.map.blocks(self.chunk, self._block, self._block + 1)[0]
        if state == VERIFIED or state == self._mark:
            self.duplicate_bytes += self._block_end - self._block_start
        else:
            self._verify()
        self._enter_block()

    def _verify(self) -> None:
        with self._view[: self._block_end - self._block_start] as block:
            digest = block_digest(block)
            if self._checksum is not None:
                self._crcs[self._block] = self._checksum(block)
            if self._expected_block:
                good = digest == self._expected_block
            elif self._expected is not None:
                at = self._block * DIGEST_BYTES
                good = digest == self._expected[at : at + DIGEST_BYTES]
            else:
                good = self.pin is None or chunk_pin([digest]) == self.pin
            if not good:
                raise ChunkMismatch(f"block {self._block} of chunk {self.chunk} does not match")
            relayed = self._mark == RELAYED and self._expected is not None
            if relayed and not self._chunks.has_digest(self.chunk, self._block, digest):
                return  # others' digests count meanwhile: with them it would pass for verified
            self._chunks.write(self.chunk, self._block_start, block)
        if not relayed:  # whatever others have told of it meanwhile
            self._chunks.store_digest(self.chunk, self._block, digest)
        self._chunks.map.set(self.chunk, self._block, self._mark)
        self._chunks.came(self.chunk)

    @property
    def block_left(self) -> int:
        """Bytes of the current block that are still to come."""
        return self._block_end - self.position

    def cut(self, end: int) -> None:
        """Another one takes the blocks from `end` on: this one is complete there."""
        assert self._block_end <= end <= self.end, (self._block_end, end, self.end)
        self.end = end

    @property
    def complete(self) -> bool:
        """The missing range has come."""
        return self.position >= self.end

    def close(self) -> None:
        """Give the memory back; what was verified stays."""
        self._view.release()
        self._chunks.give_buffer(self._buffer)
