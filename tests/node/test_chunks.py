"""A block on its way: it is in memory until it is verified, and then in its file, in this order.

Goal: no reader ever sees a byte that was not verified, whatever fails in between.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from node.chunks import SPARE_BUFFERS, ChunkMismatch, Chunks, Sink
from node.statemap import MISSING, RELAYED, VERIFIED
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
    Sink(chunks, 0, None, (BLOCK, 3 * BLOCK)).close()
    Sink(chunks, 0, None).close()
    assert taken[1:] == [(BLOCK, 2 * BLOCK), (0, CHUNK)], "a larger part is not there yet"
    taken.clear()
    Sink(chunks, 0, None, (0, BLOCK)).close()
    chunks.dropped(0)
    Sink(chunks, 0, None, (BLOCK, 2 * BLOCK)).close()
    assert taken == [], "of one block a write takes it, or fails"


def test_space_that_was_not_there_is_asked_for_again(chunks, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreFull):
            chunks.allocate(0)
    chunks.allocate(0)
    assert os.stat(chunks.descriptor(0)).st_blocks * 512 >= CHUNK


def test_nobody_else_writes_to_a_file_while_space_is_taken_or_a_block_written(chunks, monkeypatch):
    told = []

    @contextmanager
    def writing(file: int) -> Iterator[None]:
        told.append(("begin", file))
        yield
        told.append(("end", file))

    for name in ("posix_fallocate", "pwrite"):
        real = getattr(os, name)

        def call(*args: object, name: str = name, real: Callable[..., int] = real) -> int:
            told.append((name, args[0]))
            return real(*args)

        monkeypatch.setattr(os, name, call)
    with closing(Chunks(chunks._files.parent, writing)) as shared:
        file = shared.descriptor(0)
        shared.allocate(0)
        shared.write(0, BLOCK, memoryview(GOOD[:BLOCK]))
        begin, end = ("begin", 0), ("end", 0)
        assert told == [begin, ("posix_fallocate", file), end, begin, ("pwrite", file), end]


def test_memory_is_one_block_a_transfer_and_some_are_kept_for_the_next(chunks):
    sinks = [Sink(chunks, 0, None) for _ in range(SPARE_BUFFERS + 3)]
    for sink in sinks:
        sink.close()
    assert len(chunks._spare) == SPARE_BUFFERS
    last = chunks._spare[-1]
    with closing(Sink(chunks, 0, None)) as sink:
        assert sink.window().obj is last, "the one whose lines are still in cache"
        assert len(sink.window()) == BLOCK


# -- blocks that are passed on before their pin is confirmed --------------------------------------

DIGESTS = block_digest(GOOD[:BLOCK]) * 4
PIN = chunk_pin(DIGESTS)
LIES = block_digest(OTHER[:BLOCK]) * 4


def states(chunks: Chunks, chunk: int = 0) -> list[int]:
    return list(chunks.map.blocks(chunk, 0, chunks.manifest.block_count(chunk)))


def passable(chunks: Chunks, chunk: int = 0) -> list[bool]:
    blocks = range(chunks.manifest.block_count(chunk))
    return [chunks.passable(chunk, block * BLOCK) for block in blocks]


@contextmanager
def coming(chunks: Chunks, pin: bytes, digests: bytes, chunk: int = 0) -> Iterator[Sink]:
    """A chunk comes from a peer, which has told its digests."""
    with closing(Sink(chunks, chunk, pin)) as sink:
        sink.expect(digests)
        yield sink


def test_without_a_pin_blocks_are_passed_on_and_neither_read_nor_served_until_it_is_confirmed(
    chunks,
):
    with coming(chunks, b"", DIGESTS) as sink:
        assert passable(chunks) == [False] * 4
        fill(sink, GOOD[: 2 * BLOCK])
        assert states(chunks) == [RELAYED, RELAYED, MISSING, MISSING]
        assert passable(chunks) == [True, True, False, False]
        assert not chunks.verified(0, 0, 1)
        assert chunks.map.find_missing(0, 4) == 0, "for readers"
        assert chunks.missing_range(0) == (2 * BLOCK, CHUNK), "not to be asked for again"
        fill(sink, GOOD[2 * BLOCK :])
        assert sink.pin == PIN, "its digests made it"
    assert states(chunks) == [RELAYED] * 4
    assert not chunks.verified(0, 0, CHUNK)
    assert chunks.settle(0, PIN) == DIGESTS
    assert states(chunks) == [VERIFIED] * 4
    assert chunks.verified(0, 0, CHUNK)
    assert stored(chunks) == GOOD


def test_a_pin_that_nobody_knew_is_made_by_the_digests(chunks):
    with coming(chunks, b"", DIGESTS) as sink:
        fill(sink, GOOD)
    assert chunks.settle(0, b"") == DIGESTS
    assert states(chunks) == [VERIFIED] * 4


def test_what_does_not_make_the_pin_is_dropped_and_what_was_verified_stays(chunks):
    with closing(Sink(chunks, 0, None, (0, BLOCK))) as fetched:
        fill(fetched, GOOD[:BLOCK])
    mixed = DIGESTS[:16] + LIES[16:]
    with coming(chunks, b"", mixed) as sink:
        fill(sink, OTHER[BLOCK:])
    assert states(chunks) == [VERIFIED, RELAYED, RELAYED, RELAYED]
    assert chunks.settle(0, PIN) == b""
    assert states(chunks) == [VERIFIED, MISSING, MISSING, MISSING]


def test_with_a_pin_blocks_are_verified_at_once_and_passed_on_one_by_one(chunks):
    with coming(chunks, PIN, DIGESTS) as sink:
        fill(sink, GOOD[: BLOCK + 5])
        assert states(chunks) == [VERIFIED, MISSING, MISSING, MISSING]
        assert passable(chunks) == [True, False, False, False]


def test_pinned_digests_confirm_relayed_blocks_that_have_them_and_drop_the_others(chunks):
    mixed = LIES[:16] + DIGESTS[16:]
    with coming(chunks, b"", mixed) as sink:
        fill(sink, OTHER[:BLOCK] + GOOD[: 2 * BLOCK])
    assert states(chunks) == [RELAYED, RELAYED, RELAYED, MISSING]
    with coming(chunks, PIN, DIGESTS):
        assert states(chunks) == [MISSING, VERIFIED, VERIFIED, MISSING]
        assert passable(chunks) == [False, True, True, False]
    assert chunks.digests(0) == DIGESTS


def test_unpinned_digests_drop_relayed_blocks_that_have_others_and_confirm_none(chunks):
    with coming(chunks, b"", LIES[:16] + DIGESTS[16:]) as sink:
        fill(sink, OTHER[:BLOCK] + GOOD[:BLOCK])
    with coming(chunks, b"", DIGESTS):
        assert states(chunks) == [MISSING, RELAYED, MISSING, MISSING]
    assert chunks.digests(0) == DIGESTS


@pytest.mark.parametrize("pinned", [False, True])
def test_digests_that_are_not_those_of_a_verified_block_are_refused(chunks, pinned):
    with closing(Sink(chunks, 0, None, (BLOCK, 2 * BLOCK))) as fetched:
        fill(fetched, GOOD[:BLOCK])
    pin = chunk_pin(LIES) if pinned else b""
    with closing(Sink(chunks, 0, pin)) as sink, pytest.raises(ChunkMismatch, match="chunk 0"):
        sink.expect(LIES)
    assert states(chunks) == [MISSING, VERIFIED, MISSING, MISSING]
    assert chunks.digests(0)[16:32] == DIGESTS[16:32]


def test_a_block_of_digests_that_were_replaced_meanwhile_is_not_kept(chunks):
    with coming(chunks, b"", LIES) as liar, coming(chunks, PIN, DIGESTS) as honest:
        fill(liar, OTHER[:BLOCK])
        assert states(chunks) == [MISSING] * 4
        fill(honest, GOOD[:BLOCK])
        fill(liar, OTHER[BLOCK:])
    assert states(chunks) == [VERIFIED, MISSING, MISSING, MISSING]
    with coming(chunks, PIN, DIGESTS):
        assert states(chunks) == [VERIFIED, MISSING, MISSING, MISSING], (
            "nothing wrong was confirmed"
        )


def test_verified_blocks_have_their_own_digests_whatever_others_told_meanwhile(chunks):
    with coming(chunks, PIN, DIGESTS) as honest, coming(chunks, b"", LIES) as liar:
        fill(honest, GOOD[:BLOCK])
        fill(liar, OTHER[: 2 * BLOCK])
        fill(honest, GOOD[BLOCK:])
        assert liar.duplicate_bytes == BLOCK
    assert chunks.settle(0, PIN) == DIGESTS
    assert stored(chunks) == GOOD


def test_the_origins_bytes_replace_what_peers_sent_unpinned(chunks):
    with coming(chunks, b"", LIES) as sink:
        fill(sink, OTHER[: 2 * BLOCK])
    chunks.leave_relays(0)
    assert passable(chunks) == [False] * 4, "they may be wrong: a fetch is not begun for nothing"
    assert chunks.missing_spans(0) == [(0, CHUNK)], "all of it, what was relayed as well"
    with closing(Sink(chunks, 0, None, (0, CHUNK))) as fetched:
        fill(fetched, GOOD)
        assert fetched.duplicate_bytes == 0
    assert stored(chunks) == GOOD
    assert chunks.digests(0) == DIGESTS
    assert states(chunks) == [VERIFIED] * 4
    assert passable(chunks) == [True] * 4


def test_the_origin_is_not_asked_for_what_is_verified(chunks):
    with closing(Sink(chunks, 0, None, (BLOCK, 2 * BLOCK))) as fetched:
        fill(fetched, GOOD[:BLOCK])
    with coming(chunks, b"", DIGESTS) as sink:
        fill(sink, GOOD[:BLOCK])
    assert chunks.missing_spans(0) == [(0, BLOCK), (2 * BLOCK, CHUNK)]


def test_a_whole_chunk_is_passed_on_whoever_brought_it(chunks, tmp_path):
    with closing(Sink(chunks, 2, None)) as sink:
        fill(sink, bytes(BLOCK + 7))
    with closing(Chunks(chunks._files.parent)) as other:  # another worker's view
        assert passable(other, 2) == [True, True]


def test_half_a_chunk_is_passed_on_with_all_digests_only_where_they_are_known(chunks):
    with coming(chunks, PIN, DIGESTS) as sink:
        fill(sink, GOOD[:BLOCK])
    with closing(Chunks(chunks._files.parent)) as other:
        assert passable(other) == [True, False, False, False]
        assert other.passed_digests(0) == b"", "each block with its own"
    assert chunks.passed_digests(0) == DIGESTS


def test_who_waits_for_a_chunk_is_called_once_for_each_time_it_waits(chunks):
    called: list[tuple[str, int]] = []

    def one(chunk: int) -> None:
        called.append(("one", chunk))
        chunks.wait(0, other)

    def other(chunk: int) -> None:
        called.append(("other", chunk))

    for _ in range(3):
        chunks.wait(0, one)
    chunks.wait(1, other)
    chunks.came(0)
    assert called == [("one", 0)], "however often it said that it waits"
    chunks.came(0)
    chunks.came(0)
    chunks.came(1)
    assert called == [("one", 0), ("other", 0), ("other", 1)]


def test_who_waits_is_called_at_each_block_when_it_may_be_passed_on(chunks):
    seen: list[list[bool]] = []

    def call(chunk: int) -> None:
        seen.append(passable(chunks, chunk))
        chunks.wait(chunk, call)

    chunks.wait(0, call)
    with coming(chunks, b"", DIGESTS) as sink:
        fill(sink, GOOD[: 2 * BLOCK + 9])
        assert seen == [[True, False, False, False], [True, True, False, False]]
