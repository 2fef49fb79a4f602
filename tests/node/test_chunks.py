"""A block on its way: it is in memory until it is verified, and then in its file, in this order.

Goal: no reader ever sees a byte that was not verified, whatever fails in between.
"""

import errno
import os
from contextlib import closing

import pytest

from node.chunks import SPARE_BUFFERS, ChunkMismatch, Chunks, Sink
from node.store import Cache, ChunkStore
from p2p.digest import block_digest, chunk_pin
from p2p.errors import StoreError, StoreFull
from p2p.manifest import File, Manifest

BLOCK, CHUNK = 64 * 1024, 256 * 1024
SIZE = 2 * CHUNK + BLOCK + 7
GOOD, OTHER = b"g" * CHUNK, b"o" * CHUNK


@pytest.fixture
def chunks(tmp_path):
    """A worker's view of a new store: two full chunks, and one of a block and 7 bytes."""
    manifest = Manifest("m", "", (File("big", SIZE, "e"),), CHUNK, BLOCK)
    cache = Cache.open(tmp_path / "c")
    with (
        closing(cache),
        closing(ChunkStore.open(cache, manifest)) as store,
        closing(Chunks(store.directory)) as chunks,
    ):
        yield chunks


def fill(sink: Sink, data: bytes) -> None:
    """Bytes as they come from a socket: a few at a time."""
    while data:
        window = sink.window()[:30_000]
        count = min(len(window), len(data))
        window[:count] = data[:count]
        data = data[count:]
        sink.advance(count)


def stored(chunks: Chunks, chunk: int = 0) -> bytes:
    """A chunk as its file has it."""
    blocks = range(chunks.manifest.block_count(chunk))
    return b"".join(chunks.read_block(chunk, block) for block in blocks)


def test_a_chunk_arrives_whole_with_a_short_last_block(chunks):
    data = bytes(range(256)) * 256 + b"7 bytes"
    with closing(Sink(chunks, 2, None)) as sink:
        fill(sink, data)
        assert sink.complete
    assert stored(chunks, 2) == data
    assert chunks.digests(2) == block_digest(data[:BLOCK]) + block_digest(data[BLOCK:])
    assert chunks.missing_range(2) == (0, 0)


def test_what_is_not_verified_never_touches_the_file(chunks):
    digests = block_digest(GOOD[:BLOCK]) * 4
    with closing(Sink(chunks, 0, chunk_pin(digests))) as sink:
        sink.expect(digests)
        fill(sink, GOOD[: BLOCK + 100])
        with pytest.raises(ChunkMismatch):
            fill(sink, OTHER[: BLOCK - 100])
    assert stored(chunks) == GOOD[:BLOCK] + bytes(CHUNK - BLOCK)
    assert chunks.missing_range(0) == (BLOCK, CHUNK)


def test_a_block_that_another_transfer_verified_meanwhile_is_not_written_again(chunks):
    with closing(Sink(chunks, 0, None)) as late, closing(Sink(chunks, 0, None)) as quick:
        fill(late, OTHER[:100])
        fill(quick, GOOD)
        fill(late, OTHER[100:])
        assert late.complete
        assert (quick.duplicate_bytes, late.duplicate_bytes) == (0, CHUNK)
    assert stored(chunks) == GOOD
    assert chunks.digests(0) == block_digest(GOOD[:BLOCK]) * 4


def test_bytes_are_written_first_then_the_digest_then_the_mark(chunks, monkeypatch):
    steps: list[tuple[bytes, bytes, bool]] = []

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        steps.append((chunks.read_block(0, 0), chunks.digests(0)[:16], chunks.verified(0, 0, 1)))
        return write(descriptor, data, at)

    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with closing(Sink(chunks, 0, None)) as sink:
        fill(sink, GOOD[:BLOCK])
    good = GOOD[:BLOCK]
    assert steps == [(bytes(BLOCK), bytes(16), False), (good, bytes(16), False)]
    assert chunks.digests(0)[:16] == block_digest(good)
    assert chunks.verified(0, 0, BLOCK)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreError)], ids=["full", "EIO"]
)
def test_a_block_that_cannot_be_written_is_an_error_and_not_marked(
    chunks, monkeypatch, number, error
):
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with closing(Sink(chunks, 0, None)) as sink, pytest.raises(error, match="chunk 0") as caught:
        fill(sink, GOOD)
    assert type(caught.value) is error
    assert chunks.missing_range(0) == (0, CHUNK)


def test_a_write_that_takes_a_part_goes_on_with_the_rest(chunks, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    chunks.write(1, 5, memoryview(GOOD)[: BLOCK - 5])
    assert chunks.read_block(1, 0) == bytes(5) + GOOD[: BLOCK - 5]


def test_space_is_taken_before_the_transfer_and_once(chunks, monkeypatch):
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda _, at, size: taken.append((at, size)))
    chunks.allocate(1)
    Sink(chunks, 1, None).close()
    Sink(chunks, 1, None, (BLOCK, 2 * BLOCK)).close()
    assert taken == [(CHUNK, CHUNK)]
    Sink(chunks, 0, None, (BLOCK, 2 * BLOCK)).close()
    Sink(chunks, 0, None).close()
    assert taken[1:] == [(BLOCK, BLOCK), (0, CHUNK)], "a larger part is not there yet"


def test_space_that_was_not_there_is_asked_for_again(chunks, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreFull):
            chunks.allocate(0)
    chunks.allocate(0)
    assert os.stat(chunks.descriptor(0)).st_blocks * 512 >= CHUNK


def test_memory_is_one_block_a_transfer_and_some_are_kept_for_the_next(chunks):
    sinks = [Sink(chunks, 0, None) for _ in range(SPARE_BUFFERS + 3)]
    for sink in sinks:
        sink.close()
    assert len(chunks._spare) == SPARE_BUFFERS
    last = chunks._spare[-1]
    with closing(Sink(chunks, 0, None)) as sink:
        assert sink.window().obj is last, "the one whose lines are still in cache"
        assert len(sink.window()) == BLOCK
