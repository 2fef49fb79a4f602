"""What a pool of data workers promises, with the worker inside this process and with two processes.

The other end of each data connection is the test itself, so that it can answer as no node would.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import fastcrc
import pytest
import trio

from node import jobs
from node.chunks import Chunks
from node.store import Cache, ChunkStore
from node.throttle import UPLOAD, Throttle
from node.uplink import QUEUE, WAITING_MOST, Served, Uplink
from node.worker import WorkerSettings
from node.workers import WorkerPool
from p2p import dataframe
from p2p.dataframe import EndStatus, Flag, Header, Kind
from p2p.digest import block_digest, chunk_pin
from p2p.errors import StoreError
from p2p.manifest import File, Manifest
from p2p.poller import Poller
from p2p.slots import READY_MOST, YIELD_S, UploadSlots

KIB = 1024
BLOCK, CHUNK = 64 * KIB, 256 * KIB
SIZES = {"a/big.bin": 2 * CHUNK + BLOCK + 7, "empty": 0, "one": 1}
PEER = b"p" * 16


class Bench:
    """A source, a store of the same files, and a pool that works on the store."""

    def __init__(self, folder: Path, workers: int, **settings: float) -> None:
        self.source = folder / "source"
        files = []
        for name, size in SIZES.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes((i * 31 + i // 251) % 256 for i in range(size)))
            status = path.stat()
            files.append(File(name, size, f"{status.st_size}-{status.st_mtime_ns}"))
        self.manifest = Manifest("m", "", tuple(files), CHUNK, BLOCK)
        self.cache = Cache.open(folder / "cache")
        self.store = ChunkStore.open(self.cache, self.manifest)
        self.far_ends: list[FarEnd] = []
        self.pool = WorkerPool(workers, WorkerSettings(**settings))
        for worker in range(self.pool.count):
            self.pool.submit(worker, jobs.OpenModel(str(self.store.directory)))

    def data(self, chunk: int) -> bytes:
        """The source's bytes of a chunk."""
        extent = self.manifest.extent(chunk)
        data = (self.source / self.manifest.files[extent.file].path).read_bytes()
        return data[extent.offset : extent.offset + extent.length]

    def stored(self, chunk: int) -> bytes:
        """The cache's bytes of a chunk."""
        extent = self.manifest.extent(chunk)
        data = self.store.file_path(extent.file).read_bytes()
        return data[extent.offset : extent.offset + extent.length]

    def digests(self, chunk: int) -> bytes:
        """Of all blocks of the source's chunk, joined."""
        data = self.data(chunk)
        return b"".join(block_digest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))

    def pin(self, chunk: int) -> bytes:
        """Of the source's chunk."""
        return chunk_pin(self.digests(chunk))

    def fetch_job(self, chunk: int, etag: str | None = None) -> jobs.FetchJob:
        """Read a chunk from the source."""
        file = self.manifest.files[self.manifest.extent(chunk).file]
        url = (self.source / file.path).as_uri()
        return jobs.FetchJob(chunk, url, [], etag or file.etag, "", file.size_bytes)

    async def report(self, *kinds: type) -> jobs.Report:
        """The next report, which is of one of `kinds`."""
        with trio.fail_after(10):
            _, report = await self.pool.reports.receive()
        assert isinstance(report, kinds), report
        return report

    async def fetched(self, chunk: int) -> None:
        """Have a chunk in the store, from the source."""
        self.pool.submit(chunk % self.pool.count, self.fetch_job(chunk))
        report = await self.report(jobs.Got)
        self.store.record(chunk, report.pin, report.digests, b"")

    def far_end(self, *, narrow: bool = False) -> "FarEnd":
        """A data connection; its near end is to be handed to a worker."""
        self.far_ends.append(FarEnd(narrow=narrow))
        return self.far_ends[-1]

    def close(self) -> None:
        """Release the cache."""
        self.store.close()
        self.cache.close()


@asynccontextmanager
async def running(folder: Path, workers: int, **settings: float) -> AsyncIterator[Bench]:
    """A bench whose pool runs."""
    with closing(Bench(folder, workers, **settings)) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.pool.run)
            yield bench
            for far in bench.far_ends:
                await trio.aclose_forcefully(far.stream)
            nursery.cancel_scope.cancel()


@pytest.fixture(params=[0, 2], ids=["workers=0", "workers=2"])
async def bench(request, tmp_path):
    """With the worker in this process, and with two processes."""
    async with running(tmp_path, request.param) as bench:
        yield bench


class FarEnd:
    """The peer's end of a data connection; a narrow one takes a few KiB until somebody reads."""

    def __init__(self, *, narrow: bool = False) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        if narrow:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.near = socket.create_connection(listener.getsockname())
        if narrow:
            self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        far, _ = listener.accept()
        listener.close()
        self.near.setblocking(False)
        far.setblocking(False)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        self._buffer = b""

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        with trio.fail_after(10):
            while len(self._buffer) < count:
                data = await self.stream.receive_some(1 << 20)
                assert data, "the connection ended"
                self._buffer += data
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def header(self, allowed: frozenset[Kind]) -> Header:
        """The next header."""
        return dataframe.decode(await self.read(dataframe.HEADER_BYTES), allowed)

    async def request(self) -> Header:
        """The next request."""
        return await self.header(dataframe.UPWARD)

    async def payload(self, frame: Header) -> bytes:
        """The payload of an answer whose first header is this one."""
        data = b""
        while True:
            await self.read(frame.digests)
            data += await self.read(frame.length)
            if frame.flags & Flag.LAST:
                return data
            frame = await self.header(dataframe.DOWNWARD)

    async def send(self, *parts: bytes) -> None:
        """Bytes as they are; whoever has seen enough of them may close."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(b"".join(parts))

    async def ended(self) -> bool:
        """The near side closes the connection."""
        with trio.move_on_after(10):
            try:
                return not await self.stream.receive_some(1)
            except trio.BrokenResourceError:
                return True
        return False


async def near(bench: Bench, job: type) -> FarEnd:
    """Hand a connection to worker 0 as link 1; returns its far end."""
    far = bench.far_end()
    bench.pool.submit(0, job(1, PEER), far.near)
    return far


def answer(
    bench: Bench, asked: Header, data: bytes, digests: bytes, *, last: bool = False
) -> list[bytes]:
    """All frames that answer a request with `data` (of the whole chunk), ended by END or LAST."""
    parts, end = [], asked.offset + asked.length
    for at in range(asked.offset, end, BLOCK):
        size = min(BLOCK, end - at)
        flags = Flag.DIGESTS if digests else Flag.NONE
        if last and at + size == end:
            flags |= Flag.LAST
        frame = Header(Kind.DATA, asked.request, asked.chunk, at, size, flags, len(digests))
        parts += [frame.encode(), digests, data[at : at + size]]
        digests = b""
    return parts if last else [*parts, Header(Kind.END, asked.request, asked.chunk).encode()]


# -- the origin -----------------------------------------------------------------------------------


async def test_a_fetched_chunk_is_in_the_store_with_its_digests(bench):
    for chunk in range(bench.manifest.chunk_count):
        bench.pool.submit(chunk % bench.pool.count, bench.fetch_job(chunk))
        report = await bench.report(jobs.Got)
        assert (report.chunk, report.source) == (chunk, "origin")
        assert report.pin == bench.pin(chunk)
        assert report.digests == bench.digests(chunk)
        assert bench.stored(chunk) == bench.data(chunk)
    assert bench.pool.totals().origin_bytes == sum(SIZES.values())


async def test_a_changed_file_is_a_fatal_error_and_nothing_of_it_is_kept(bench):
    bench.pool.submit(0, bench.fetch_job(0, etag="1-1"))
    report = await bench.report(jobs.FetchEnded)
    assert report.fatal
    assert "changed" in report.text
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (0, CHUNK)


async def test_what_is_here_already_is_not_fetched_again(bench):
    await bench.fetched(0)
    before = bench.pool.totals().origin_bytes
    await bench.fetched(0)
    assert bench.pool.totals().origin_bytes == before


# -- who writes -----------------------------------------------------------------------------------


async def test_a_worker_sleeps_while_another_process_writes_to_the_file_it_wants(tmp_path):
    async with running(tmp_path, 2) as bench:
        one = bench.manifest.chunk_count - 1
        await bench.fetched(one)  # both have started
        with bench.pool._meter.writing(0):
            bench.pool.submit(0, bench.fetch_job(0))
            waiting = re.compile(rf"-> POSIX +ADVISORY +WRITE {bench.pool.pids[0]} ")
            with trio.fail_after(10):
                while not waiting.search(Path("/proc/locks").read_text()):
                    await trio.sleep(0.005)
            bench.store.file_path(bench.manifest.extent(one).file).write_bytes(b"?")
            bench.pool.submit(1, jobs.RehashJob(one, bench.pin(one)))
            await bench.report(jobs.Damaged)  # of another file, so nothing waits
            bench.pool.submit(1, bench.fetch_job(one))
            assert (await bench.report(jobs.Got)).chunk == one
        assert (await bench.report(jobs.Got)).chunk == 0
        assert bench.stored(0) == bench.data(0)


async def test_one_worker_alone_asks_nobody_before_it_writes(tmp_path):
    async with running(tmp_path, 1) as bench:
        with bench.pool._meter.writing(0):
            await bench.fetched(0)


# -- hashing --------------------------------------------------------------------------------------


async def test_a_rehash_tells_good_from_damaged(bench):
    await bench.fetched(0)
    bench.pool.submit(0, jobs.RehashJob(0, bench.pin(0)))
    report = await bench.report(jobs.Got)
    assert (report.source, report.pin) == ("disk", bench.pin(0))
    with bench.store.file_path(0).open("r+b") as stream:
        stream.seek(BLOCK + 3)
        stream.write(b"\xee\xee")
    bench.pool.submit(0, jobs.RehashJob(0, bench.pin(0)))
    assert (await bench.report(jobs.Damaged)).chunk == 0
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (0, CHUNK)


async def test_a_checksum_is_that_of_verified_bytes_or_none(bench):
    await bench.fetched(0)
    bench.pool.submit(0, jobs.ChecksumJob(0, "crc64xz"))
    report = await bench.report(jobs.Checksummed)
    assert report.checksum == fastcrc.crc64.xz(bench.data(0)).to_bytes(8, "big")
    with bench.store.file_path(0).open("r+b") as stream:
        stream.seek(2 * BLOCK + 3)
        stream.write(b"\xee\xee")
    bench.pool.submit(0, jobs.ChecksumJob(0, "crc64xz"))
    assert (await bench.report(jobs.Damaged)).chunk == 0, "rotten bytes must not condemn a file"
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (0, CHUNK)


# -- from a peer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True], ids=["END", "LAST"])
async def test_a_chunk_from_a_peer_is_verified_block_by_block(bench, last):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 2, bench.pin(2)))
    asked = await far.request()
    assert (asked.kind, asked.request, asked.chunk) == (Kind.REQUEST, 7, 2)
    assert (asked.offset, asked.length) == (0, BLOCK + 7)
    await far.send(*answer(bench, asked, bench.data(2), bench.digests(2), last=last))
    report = await bench.report(jobs.Got)
    assert (report.source, report.request, report.chunk) == ("peer", 7, 2)
    assert report.digests == bench.digests(2)
    assert bench.stored(2) == bench.data(2)
    assert bench.pool.totals().peer_bytes == BLOCK + 7


async def test_a_chunk_of_one_block_needs_no_digests(bench):
    last = bench.manifest.chunk_count - 1
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(1, 1, last, bench.pin(last)))
    asked = await far.request()
    await far.send(*answer(bench, asked, bench.data(last), b""))
    await bench.report(jobs.Got)
    assert bench.stored(last) == bench.data(last)


@pytest.mark.parametrize("bad", [0, CHUNK // 2 + 9, CHUNK - 1])
async def test_one_wrong_bit_is_refused_and_the_connection_closed(bench, bad):
    data = bytearray(bench.data(0))
    data[bad] ^= 1
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    await far.send(*answer(bench, await far.request(), bytes(data), bench.digests(0)))
    assert (await bench.report(jobs.AskEnded)).why == "corrupt"
    assert (await bench.report(jobs.LinkClosed)).link == 1
    assert await far.ended()
    good = bad // BLOCK * BLOCK
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (good, CHUNK), "blocks before it are kept, it is not"


@pytest.mark.parametrize("chunk", [0, 2, 3], ids=["full", "short", "one block"])
async def test_a_lie_that_agrees_with_itself_does_not_make_the_pin(bench, chunk):
    data = bytearray(bench.data(chunk))
    data[-1] ^= 1
    blocks = [block_digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, chunk, bench.pin(chunk)))
    digests = b"".join(blocks) if len(blocks) > 1 else b""
    await far.send(*answer(bench, await far.request(), bytes(data), digests))
    assert (await bench.report(jobs.AskEnded)).why == "corrupt"
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(chunk) == (0, len(data))


async def test_a_chunk_of_several_blocks_without_digests_is_refused(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    await far.send(*answer(bench, await far.request(), bench.data(0), b""))
    report = await bench.report(jobs.AskEnded)
    assert report.why == "failed"
    assert "without digests" in report.text


async def test_for_a_reader_just_its_blocks_are_asked_for_and_the_last_ones_make_the_chunk(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0), BLOCK, 3 * BLOCK))
    asked = await far.request()
    assert (asked.offset, asked.length, asked.flags) == (BLOCK, 2 * BLOCK, Flag.DEMAND)
    await far.send(*answer(bench, asked, bench.data(0), bench.digests(0), last=True))
    report = await bench.report(jobs.GotBlocks)
    assert (report.request, report.chunk) == (7, 0)
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_spans(0) == [(0, BLOCK), (3 * BLOCK, CHUNK)]
    assert bench.stored(0)[BLOCK : 3 * BLOCK] == bench.data(0)[BLOCK : 3 * BLOCK]
    bench.pool.submit(0, jobs.AskJob(8, 1, 0, bench.pin(0), 2 * BLOCK, 3 * BLOCK))
    assert (await bench.report(jobs.GotBlocks)).request == 8, "here already: nobody is asked"
    bench.pool.submit(0, jobs.AskJob(9, 1, 0, bench.pin(0), 2 * BLOCK, CHUNK))
    asked = await far.request()
    assert (asked.request, asked.offset, asked.length) == (9, 3 * BLOCK, BLOCK)
    await far.send(*answer(bench, asked, bench.data(0), bench.digests(0), last=True))
    await bench.report(jobs.GotBlocks)
    bench.pool.submit(0, jobs.AskJob(10, 1, 0, bench.pin(0), 0, BLOCK))
    await far.send(*answer(bench, await far.request(), bench.data(0), bench.digests(0), last=True))
    report = await bench.report(jobs.Got)
    assert (report.request, report.digests) == (10, bench.digests(0))


async def test_one_wrong_bit_of_a_block_for_a_reader_is_refused(bench):
    data = bytearray(bench.data(0))
    data[2 * BLOCK + 5] ^= 1
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0), 2 * BLOCK, 3 * BLOCK))
    await far.send(*answer(bench, await far.request(), bytes(data), bench.digests(0), last=True))
    assert (await bench.report(jobs.AskEnded)).why == "corrupt"
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (0, CHUNK)


async def test_after_a_cut_only_the_missing_blocks_are_asked_for(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    frames = answer(bench, await far.request(), bench.data(0), bench.digests(0))
    await far.send(*frames[:6], frames[6], frames[7], frames[8][:100])  # two blocks and a bit
    await far.stream.aclose()
    assert (await bench.report(jobs.AskEnded)).why == "failed"
    await bench.report(jobs.LinkClosed)
    again = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(8, 1, 0, bench.pin(0)))
    asked = await again.request()
    assert (asked.offset, asked.length) == (2 * BLOCK, CHUNK - 2 * BLOCK)
    await again.send(*answer(bench, asked, bench.data(0), bench.digests(0)))
    await bench.report(jobs.Got)
    assert bench.stored(0) == bench.data(0)


@pytest.mark.parametrize(
    ("kind", "status", "why", "retry_after_s"),
    [(Kind.BUSY, 250, "busy", 0.25), (Kind.NOT_HAVE, 0, "not_have", 0.0)],
)
async def test_a_refusal_is_reported_and_the_connection_lives_on(
    bench, kind, status, why, retry_after_s
):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    asked = await far.request()
    await far.send(Header(kind, asked.request, asked.chunk, status=status).encode())
    report = await bench.report(jobs.AskEnded)
    assert (report.why, report.retry_after_s) == (why, retry_after_s)
    bench.pool.submit(0, jobs.AskJob(8, 1, 2, bench.pin(2)))
    asked = await far.request()
    await far.send(*answer(bench, asked, bench.data(2), bench.digests(2)))
    await bench.report(jobs.Got)


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.END, Kind.BUSY, Kind.NOT_HAVE])
@pytest.mark.parametrize(("number", "chunk"), [(1, 0), (0, 1)], ids=["number", "chunk"])
async def test_an_answer_to_a_request_that_is_none_ends_the_connection(bench, kind, number, chunk):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    asked = await far.request()
    length = BLOCK if kind is Kind.DATA else 0
    await far.send(Header(kind, asked.request + number, chunk, 0, length).encode())
    report = await bench.report(jobs.AskEnded)
    assert (report.request, report.why) == (7, "failed")
    assert f"an answer to request {asked.request + number}, which is none here" in report.text
    assert await far.ended()


async def test_answers_are_told_apart_by_number_block_by_block(bench):
    far = await near(bench, jobs.AddDownlink)
    asked = []
    for request, chunk in ((7, 0), (8, 1)):
        bench.pool.submit(0, jobs.AskJob(request, 1, chunk, bench.pin(chunk)))
        asked.append(await far.request())
    first, second = (
        answer(bench, one, bench.data(one.chunk), bench.digests(one.chunk), last=True)
        for one in asked
    )
    for at in range(0, len(first), 3):  # header, digests, payload
        await far.send(*second[at : at + 3], *first[at : at + 3])
    for request, chunk in ((8, 1), (7, 0)):
        report = await bench.report(jobs.Got)
        assert (report.request, report.chunk) == (request, chunk), "in the order of their ends"
        assert bench.stored(chunk) == bench.data(chunk)


async def test_data_beside_what_was_asked_for_ends_the_connection_and_none_of_it_is_kept(bench):
    for request, (offset, length) in enumerate([(BLOCK, BLOCK), (0, CHUNK + BLOCK)], 7):
        far = await near(bench, jobs.AddDownlink)
        bench.pool.submit(0, jobs.AskJob(request, 1, 0, bench.pin(0)))
        await far.request()
        digests = bench.digests(0)
        frame = Header(Kind.DATA, request, 0, offset, length, Flag.DIGESTS, len(digests))
        await far.send(frame.encode(), digests, bytes(length))
        report = await bench.report(jobs.AskEnded)
        assert report.why == "failed"
        assert f"data for bytes {offset} came at 0" in report.text
        await bench.report(jobs.LinkClosed)
        with closing(Chunks(bench.store.directory)) as chunks:
            assert chunks.missing_range(0) == (0, CHUNK)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rest", [0, 1, BLOCK // 2], ids=["in a header", "at once", "in a block"])
async def test_a_peer_that_falls_silent_is_given_up_and_its_blocks_are_kept(
    tmp_path, workers, rest
):
    async with running(tmp_path, workers, first_byte_s=0.3, stall_s=0.3) as bench:
        far = await near(bench, jobs.AddDownlink)
        bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
        frames = answer(bench, await far.request(), bench.data(0), bench.digests(0))
        await far.send(*frames[:3], *([frames[3], frames[5][:rest]] if rest else []))
        report = await bench.report(jobs.AskEnded)
        assert report.why == "failed"
        assert "no byte came in time" in report.text
        with closing(Chunks(bench.store.directory)) as chunks:
            assert chunks.missing_range(0) == (BLOCK, CHUNK)


async def test_closing_the_links_of_a_peer_answers_what_was_asked(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    await far.request()
    bench.pool.submit(0, jobs.CloseLinks(PEER))
    assert (await bench.report(jobs.AskEnded)).why == "failed"
    assert (await bench.report(jobs.LinkClosed)).peer == PEER
    assert await far.ended()


async def test_a_cancel_is_sent_and_the_ended_answer_reported(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    await far.request()
    bench.pool.submit(0, jobs.CancelJob(7))
    cancel = await far.request()
    assert (cancel.kind, cancel.request) == (Kind.CANCEL, 7)
    await far.send(Header(Kind.END, 7, 0, status=EndStatus.CANCELLED).encode())
    assert (await bench.report(jobs.AskEnded)).why == "failed"


async def test_without_space_nothing_is_asked_of_anybody_and_the_connection_lives_on(
    tmp_path, monkeypatch
):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(tmp_path, 0) as bench:
        far = await near(bench, jobs.AddDownlink)
        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", full)
            bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
            assert (await bench.report(jobs.AskEnded)).why == "no_space"
            bench.pool.submit(0, bench.fetch_job(0))
            assert (await bench.report(jobs.FetchEnded)).no_space
        bench.pool.submit(0, jobs.AskJob(8, 1, 0, bench.pin(0)))
        asked = await far.request()
        assert asked.request == 8, "the first that was asked"
        await far.send(*answer(bench, asked, bench.data(0), bench.digests(0)))
        await bench.report(jobs.Got)
        assert bench.pool.totals().origin_bytes == 0


# -- to a peer ------------------------------------------------------------------------------------


async def test_a_held_chunk_is_served_with_its_digests_and_a_part_of_it_as_well(bench):
    await bench.fetched(0)
    far = await near(bench, jobs.AddUplink)
    for offset, length in ((0, CHUNK), (BLOCK, 2 * BLOCK), (3 * BLOCK, 5)):
        await far.send(Header(Kind.REQUEST, 9, 0, offset, length).encode())
        got, at = b"", offset
        while (frame := await far.header(dataframe.DOWNWARD)).kind is Kind.DATA:
            assert (frame.request, frame.chunk, frame.offset) == (9, 0, at)
            digests = await far.read(frame.digests)
            assert digests == (bench.digests(0) if at == offset else b"")
            got += await far.read(frame.length)
            at += frame.length
            if frame.flags & Flag.LAST:
                break
        assert at == offset + length
        assert got == bench.data(0)[offset : offset + length]


async def test_what_is_not_verified_is_not_served(bench):
    far = await near(bench, jobs.AddUplink)
    await far.send(Header(Kind.REQUEST, 9, 0, 0, BLOCK).encode())
    frame = await far.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request) == (Kind.NOT_HAVE, 9)


async def test_a_part_that_is_verified_is_served_before_the_chunk_is_whole(bench):
    source = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    frames = answer(bench, await source.request(), bench.data(0), bench.digests(0))
    await source.send(*frames[:3])
    far = bench.far_end()
    bench.pool.submit(0, jobs.AddUplink(2, PEER), far.near)
    while True:
        await far.send(Header(Kind.REQUEST, 9, 0, 0, BLOCK).encode())
        frame = await far.header(dataframe.DOWNWARD)
        if frame.kind is Kind.DATA:
            break
    await far.read(frame.digests)
    assert await far.read(BLOCK) == bench.data(0)[:BLOCK]


@pytest.mark.parametrize("workers", [0, 2])
async def test_upload_slots_are_bounded_and_the_rest_is_told_to_come_again(tmp_path, workers):
    async with running(tmp_path, workers, upload_slots=max(1, workers), reserved_slots=1) as bench:
        await bench.fetched(0)
        first = bench.far_end(narrow=True)
        bench.pool.submit(0, jobs.AddUplink(1, PEER), first.near)
        # Nobody reads the answer to its end: it does not fit into the socket, and keeps the slot.
        await first.send(Header(Kind.REQUEST, 1, 0, 0, CHUNK).encode())
        assert (await first.header(dataframe.DOWNWARD)).kind is Kind.DATA
        second = bench.far_end()
        bench.pool.submit(0, jobs.AddUplink(2, PEER), second.near)
        await second.send(Header(Kind.REQUEST, 9, 0, 0, BLOCK).encode())
        frame = await second.header(dataframe.DOWNWARD)
        assert (frame.kind, frame.request) == (Kind.BUSY, 9)
        assert frame.status > 0, "a hint when to come again"
        await second.send(Header(Kind.REQUEST, 10, 0, 0, BLOCK, flags=Flag.DEMAND).encode())
        frame = await second.header(dataframe.DOWNWARD)
        assert frame.kind is Kind.DATA, "a blocked read has a slot of its own"


async def test_a_request_that_yields_to_a_reader_goes_on_though_that_never_ends(tmp_path):
    async with running(tmp_path, 0) as bench:
        await bench.fetched(0)
        bulk, urgent = bench.far_end(narrow=True), bench.far_end(narrow=True)
        for link, far in enumerate((bulk, urgent), 1):
            bench.pool.submit(0, jobs.AddUplink(link, PEER), far.near)
        await bulk.send(Header(Kind.REQUEST, 1, 0, 0, CHUNK).encode())
        first = await bulk.header(dataframe.DOWNWARD)
        # Nobody reads this one to its end: it is under way for as long as the connection lasts.
        await urgent.send(Header(Kind.REQUEST, 2, 0, 0, CHUNK, flags=Flag.DEMAND).encode())
        assert (await urgent.header(dataframe.DOWNWARD)).kind is Kind.DATA
        begin = trio.current_time()
        assert await bulk.payload(first) == bench.data(0)
        seconds = trio.current_time() - begin
        assert YIELD_S / 2 < seconds < 5, "it yielded, and not for long"


@pytest.mark.parametrize("workers", [0, 2])
async def test_what_does_not_move_keeps_no_slot_from_others_and_goes_on_later(tmp_path, workers):
    async with running(tmp_path, workers, upload_slots=max(1, workers), reserved_slots=0) as bench:
        await bench.fetched(0)
        first, second = bench.far_end(narrow=True), bench.far_end()
        for link, far in enumerate((first, second), 1):
            bench.pool.submit(0, jobs.AddUplink(link, PEER), far.near)
        kinds = []
        for attempt in range(2):
            await first.send(Header(Kind.REQUEST, attempt, 0, 0, CHUNK).encode())
            frame = await first.header(dataframe.DOWNWARD)
            with trio.fail_after(20):  # below the time-out of a peer that takes nothing
                while kinds[-1:] != [Kind.DATA]:
                    await second.send(Header(Kind.REQUEST, 9, 0, 0, BLOCK).encode())
                    answered = await second.header(dataframe.DOWNWARD)
                    kinds.append(answered.kind)
                    await trio.sleep(0.01)
            assert kinds.pop(0) is Kind.BUSY, "at first it has the slot"
            assert set(kinds[:-1]) <= {Kind.BUSY}
            kinds.clear()
            await second.read(answered.digests + answered.length)
            assert await first.payload(frame) == bench.data(0)


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_slot_is_free_again_after_a_transfer_however_it_ended(tmp_path, workers):
    async with running(tmp_path, workers, upload_slots=max(1, workers), reserved_slots=0) as bench:
        await bench.fetched(0)
        far = bench.far_end(narrow=True)
        bench.pool.submit(0, jobs.AddUplink(1, PEER), far.near)
        for request in (1, 2):
            await far.send(Header(Kind.REQUEST, request, 0, 0, BLOCK).encode())
            frame = await far.header(dataframe.DOWNWARD)
            assert (frame.kind, frame.request) == (Kind.DATA, request)
            await far.read(frame.digests + frame.length)
            assert frame.flags & Flag.LAST
        await far.send(Header(Kind.REQUEST, 3, 0, 0, CHUNK).encode())
        assert (await far.header(dataframe.DOWNWARD)).kind is Kind.DATA
        await trio.aclose_forcefully(far.stream)
        await bench.report(jobs.LinkClosed)
        other = bench.far_end()
        bench.pool.submit(0, jobs.AddUplink(2, PEER), other.near)
        await other.send(Header(Kind.REQUEST, 4, 0, 0, BLOCK).encode())
        assert (await other.header(dataframe.DOWNWARD)).kind is Kind.DATA


# -- what goes ------------------------------------------------------------------------------------


async def drop(bench: Bench, chunk: int) -> None:
    """Take a chunk out of the store, as the control process does."""
    bench.store.evict(chunk)
    for worker in range(bench.pool.count):
        bench.pool.submit(worker, jobs.DropJob(chunk))
    for _ in range(bench.pool.count):
        assert (await bench.report(jobs.Dropped)).chunk == chunk
    bench.store.punch(chunk)


def on_disk(bench: Bench, chunk: int) -> int:
    """What the file of a chunk takes."""
    path = bench.store.file_path(bench.manifest.extent(chunk).file)
    return path.stat().st_blocks * 512


async def test_a_dropped_chunk_gives_its_space_back_is_not_served_and_can_come_again(bench):
    await bench.fetched(0)
    await bench.fetched(1)
    before = on_disk(bench, 0)
    evictions = bench.store._map.evictions
    await drop(bench, 0)
    assert bench.store._map.evictions == evictions + 1
    assert before - on_disk(bench, 0) == CHUNK
    assert bench.stored(1) == bench.data(1)
    far = await near(bench, jobs.AddUplink)
    await far.send(Header(Kind.REQUEST, 1, 0, 0, CHUNK).encode())
    assert (await far.header(dataframe.DOWNWARD)).kind is Kind.NOT_HAVE
    await bench.fetched(0)
    assert bench.stored(0) == bench.data(0)
    assert on_disk(bench, 0) == before


async def test_the_end_of_a_file_is_given_back_too(bench):
    await bench.fetched(2)
    await drop(bench, 2)
    assert on_disk(bench, 2) == 0
    assert bench.store.file_path(0).stat().st_size == SIZES["a/big.bin"]


@pytest.mark.parametrize("workers", [0, 2])
async def test_who_is_being_sent_a_chunk_that_goes_gets_whole_blocks_and_is_told(tmp_path, workers):
    """The bytes of a block that was promised are the right ones, though the file has a hole now."""
    async with running(tmp_path, workers) as bench:
        await bench.fetched(0)
        far = bench.far_end(narrow=True)
        bench.pool.submit(0, jobs.AddUplink(1, PEER), far.near)
        await far.send(Header(Kind.REQUEST, 1, 0, 0, CHUNK).encode())
        frame = await far.header(dataframe.DOWNWARD)
        await far.read(frame.digests + 100)
        await drop(bench, 0)
        got = await far.read(frame.length - 100)
        assert got == bench.data(0)[100 : frame.length]
        while (frame := await far.header(dataframe.DOWNWARD)).kind is Kind.DATA:
            data = await far.read(frame.length)
            assert data == bench.data(0)[frame.offset : frame.offset + frame.length]
            assert not frame.flags & Flag.LAST, "the chunk is not whole any more"
        assert (frame.kind, frame.status) == (Kind.END, EndStatus.DROPPED)
        await far.send(Header(Kind.REQUEST, 2, 0, 0, BLOCK).encode())
        assert (await far.header(dataframe.DOWNWARD)).kind is Kind.NOT_HAVE


async def test_a_peer_that_dropped_the_chunk_meanwhile_just_has_not_got_it(bench):
    far = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    frames = answer(bench, await far.request(), bench.data(0), bench.digests(0), last=True)
    ended = Header(Kind.END, 7, 0, status=EndStatus.DROPPED).encode()
    await far.send(*frames[:3], ended)
    assert (await bench.report(jobs.AskEnded)).why == "not_have"


async def test_a_restarted_bounded_cache_frees_what_its_journal_does_not_know(tmp_path):
    async with running(tmp_path, 0) as bench:
        for chunk in (0, 1, 2):
            await bench.fetched(chunk)
        bench.store.forget(1)
        bench.store.bound()
        assert bench.stored(0) == bench.data(0)
        assert bench.stored(1) == bytes(CHUNK)
        assert bench.stored(2) == bench.data(2)
        (tmp_path / "linked").hardlink_to(bench.store.file_path(0))
        with pytest.raises(StoreError, match="linked elsewhere"):
            bench.store.bound()


async def test_what_one_peer_asks_at_once_is_queued_to_a_bound_refused_and_then_a_flood(bench):
    await bench.fetched(2)
    far = await near(bench, jobs.AddUplink)
    # In one write: the worker reads them all before it answers the first.
    await far.send(*(Header(Kind.REQUEST, n, 2, 0, 5).encode() for n in range(1, 8)))
    kinds = {}
    for _ in range(7):
        frame = await far.header(dataframe.DOWNWARD)
        kinds[frame.request] = frame.kind
        if frame.kind is Kind.DATA:
            await far.read(frame.digests + frame.length)
            assert frame.flags & Flag.LAST
    assert [kinds[n] for n in range(1, 8)] == [Kind.DATA] * QUEUE + [Kind.BUSY] * (7 - QUEUE)
    await far.send(*(Header(Kind.REQUEST, n, 2, 0, 5).encode() for n in range(16 * QUEUE + 1)))
    assert "flood" in (await bench.report(jobs.LinkClosed)).text


@pytest.mark.parametrize(
    ("chunk", "offset", "length"),
    [(99, 0, 5), (0, 1, 5), (0, 0, CHUNK + 1), (2, BLOCK, 8), (0, 0, 0)],
    ids=["no such chunk", "not at a block", "beyond a chunk", "beyond the file", "nothing"],
)
async def test_a_request_out_of_bounds_is_answered_by_the_end_of_its_connection(
    bench, chunk, offset, length
):
    await bench.fetched(0)
    await bench.fetched(2)
    far = await near(bench, jobs.AddUplink)
    await far.send(Header(Kind.REQUEST, 9, chunk, offset, length).encode())
    assert await far.ended(), "without a byte"
    assert "request for" in (await bench.report(jobs.LinkClosed)).text


# -- requests that wait ---------------------------------------------------------------------------


def ahead(bench: Bench, *asks: tuple[int, int, bytes], link: int = 1) -> None:
    """Ask the peer of a link ahead: request, chunk, pin or nothing."""
    bench.pool.submit(0, jobs.AskAheadJob(link, [*asks]))


async def downstream(bench: Bench, *, narrow: bool = False) -> FarEnd:
    """A connection on which worker 0 serves a peer, as link 2."""
    far = bench.far_end(narrow=narrow)
    bench.pool.submit(0, jobs.AddUplink(2, PEER), far.near)
    return far


def wait_for(chunk: int, request: int, length: int = CHUNK, offset: int = 0) -> bytes:
    """A request that waits."""
    return Header(Kind.REQUEST, request, chunk, offset, length, Flag.WAIT).encode()


async def block_of(far: FarEnd) -> tuple[Header, bytes, bytes]:
    """The next frame, which has bytes: its header, digests and payload."""
    frame = await far.header(dataframe.DOWNWARD)
    assert frame.kind is Kind.DATA, frame
    return frame, await far.read(frame.digests), await far.read(frame.length)


async def everything_is_read(bench: Bench) -> None:
    """Worker 0 has read what was sent to it before: it has answered something that came later."""
    other = bench.far_end()
    bench.pool.submit(0, jobs.AddUplink(9, PEER), other.near)
    await other.send(Header(Kind.REQUEST, 1, 1, 0, BLOCK).encode())
    assert (await other.header(dataframe.DOWNWARD)).kind is Kind.NOT_HAVE


def lies(bench: Bench, chunk: int = 0) -> tuple[bytes, bytes]:
    """Other bytes than those of a chunk, and their digests."""
    data = bytes(byte ^ 1 for byte in bench.data(chunk))
    blocks = range(0, len(data), BLOCK)
    return data, b"".join(block_digest(data[at : at + BLOCK]) for at in blocks)


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "no pin"])
async def test_a_waiting_request_is_answered_block_by_block_while_the_chunk_comes_in(bench, pinned):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, bench.pin(0) if pinned else b""))
    asked = await up.request()
    assert (asked.request, asked.chunk, asked.offset, asked.length) == (7, 0, 0, CHUNK)
    assert asked.flags & Flag.WAIT
    down = await downstream(bench)
    await down.send(wait_for(0, 9), Header(Kind.REQUEST, 10, 0, 0, BLOCK).encode())
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request) == (Kind.NOT_HAVE, 10), "one that does not wait"
    frames = answer(bench, asked, bench.data(0), bench.digests(0), last=True)
    for at in range(0, CHUNK, BLOCK):
        of_block = 3 * at // BLOCK
        await up.send(*frames[of_block : of_block + 3])  # and the next when this one was passed on
        frame, digests, data = await block_of(down)
        assert (frame.request, frame.chunk, frame.offset) == (9, 0, at)
        assert digests == (b"" if at else bench.digests(0))
        assert data == bench.data(0)[at : at + BLOCK]
        assert bool(frame.flags & Flag.LAST) == (at == CHUNK - BLOCK)
    report = await bench.report(jobs.Got)
    assert (report.request, report.pin, report.digests) == (7, bench.pin(0), bench.digests(0))
    assert bench.stored(0) == bench.data(0)


async def test_a_relayed_block_is_passed_on_but_not_served_before_the_pin_is_confirmed(bench):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""))
    frames = answer(bench, await up.request(), bench.data(0), bench.digests(0), last=True)
    await up.send(*frames[:3])
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    await block_of(down)
    plain = Header(Kind.REQUEST, 10, 0, 0, BLOCK).encode()
    await down.send(plain)
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request) == (Kind.NOT_HAVE, 10)
    await up.send(*frames[3:])
    await bench.report(jobs.Got)
    for _ in range(3):
        await block_of(down)
    await down.send(plain)
    assert (await block_of(down))[2] == bench.data(0)[:BLOCK]


async def test_answers_to_waiting_requests_go_on_in_turn_as_their_chunks_come_in(bench):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""), (8, 1, bench.pin(1)))
    both = [
        answer(bench, asked, bench.data(asked.chunk), bench.digests(asked.chunk), last=True)
        for asked in (await up.request(), await up.request())
    ]
    down = await downstream(bench)
    await down.send(wait_for(1, 9), wait_for(0, 10))
    for at in range(0, CHUNK, BLOCK):
        of_block = 3 * at // BLOCK
        for chunk, request in ((0, 10), (1, 9)):
            await up.send(*both[chunk][of_block : of_block + 3])
            frame, _, data = await block_of(down)
            assert (frame.request, frame.chunk, frame.offset) == (request, chunk, at)
            assert data == bench.data(chunk)[at : at + BLOCK]
    assert {(await bench.report(jobs.Got)).request for _ in range(2)} == {7, 8}


async def test_plain_requests_are_answered_while_others_wait_on_the_same_connection(bench):
    await bench.fetched(2)
    down = await downstream(bench)
    await down.send(wait_for(0, 9), wait_for(1, 10))
    for request in range(11, 21):
        await down.send(Header(Kind.REQUEST, request, 2, BLOCK, 7).encode())
        frame, _, data = await block_of(down)
        assert (frame.request, data) == (request, bench.data(2)[BLOCK:])


async def test_what_an_origin_brings_to_any_worker_is_passed_on_to_who_waits(bench):
    down = await downstream(bench)
    plain = Header(Kind.REQUEST, 8, 0, 0, BLOCK).encode()
    await down.send(wait_for(0, 9), plain)
    assert (await down.header(dataframe.DOWNWARD)).kind is Kind.NOT_HAVE, "it waits by now"
    bench.pool.submit(bench.pool.count - 1, bench.fetch_job(0))
    got = b""
    for _ in range(CHUNK // BLOCK):
        frame, digests, data = await block_of(down)
        own = bench.digests(0)[len(got) // BLOCK * 16 :][:16]
        expected = own if frame.flags & Flag.OWN else bench.digests(0)
        assert digests in (b"", expected), "its own, or at first all"
        got += data
    assert got == bench.data(0)
    assert frame.flags & Flag.LAST


async def test_a_waiting_request_for_a_part_brings_all_digests_and_that_part(bench):
    await bench.fetched(0)
    down = await downstream(bench)
    await down.send(wait_for(0, 9, offset=BLOCK, length=BLOCK))
    frame, digests, data = await block_of(down)
    assert (frame.offset, digests) == (BLOCK, bench.digests(0))
    assert data == bench.data(0)[BLOCK : 2 * BLOCK]
    assert frame.flags & Flag.LAST


async def test_a_chunk_of_one_block_comes_with_its_digest_to_those_who_waited(bench):
    one = bench.manifest.chunk_count - 1
    await bench.fetched(one)
    down = await downstream(bench)
    await down.send(wait_for(one, 9, length=1))
    assert (await block_of(down))[1:] == (bench.digests(one), bench.data(one))


async def test_a_cancelled_request_that_waits_is_ended_between_frames_and_never_inside_a_payload(
    bench,
):
    await bench.fetched(0)
    down = await downstream(bench, narrow=True)
    await down.send(wait_for(1, 9), Header(Kind.REQUEST, 10, 0, 0, CHUNK).encode())
    frame = await down.header(dataframe.DOWNWARD)
    # The socket takes a few KiB: the block's payload is under way when the cancel comes.
    await down.send(Header(Kind.CANCEL, 9, 1).encode())
    await everything_is_read(bench)
    await down.read(frame.digests)
    got, ended = await down.read(frame.length), []
    while len(got) < CHUNK or not ended:
        frame = await down.header(dataframe.DOWNWARD)
        if frame.kind is Kind.END:
            ended.append((frame.request, frame.chunk, frame.status))
        else:
            assert frame.request == 10
            got += await down.read(frame.length)
    assert got == bench.data(0)
    assert ended == [(9, 1, EndStatus.CANCELLED)]


async def test_a_waiting_answer_that_is_cancelled_in_a_block_ends_behind_it(bench):
    await bench.fetched(0)
    down = await downstream(bench, narrow=True)
    await down.send(wait_for(0, 9))
    frame = await down.header(dataframe.DOWNWARD)
    await down.send(Header(Kind.CANCEL, 9, 0).encode())
    await everything_is_read(bench)
    await down.read(frame.digests)
    assert await down.read(frame.length) == bench.data(0)[:BLOCK]
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request, frame.status) == (Kind.END, 9, EndStatus.CANCELLED)


async def test_a_waiting_answer_that_is_cancelled_between_blocks_gets_no_more_of_them(bench):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""))
    frames = answer(bench, await up.request(), bench.data(0), bench.digests(0), last=True)
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    await up.send(*frames[:3])
    await block_of(down)
    await down.send(Header(Kind.CANCEL, 9, 0).encode())
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request, frame.status) == (Kind.END, 9, EndStatus.CANCELLED)
    await up.send(*frames[3:])
    await bench.report(jobs.Got)
    await down.send(Header(Kind.REQUEST, 10, 0, 0, BLOCK).encode())
    assert (await block_of(down))[0].request == 10, "the next that comes"


async def test_a_cancel_of_no_request_is_no_answer(bench):
    await bench.fetched(2)
    down = await downstream(bench)
    await down.send(Header(Kind.CANCEL, 5, 0).encode(), wait_for(2, 9, length=BLOCK + 7))
    assert (await block_of(down))[0].request == 9


async def test_an_uplink_that_is_behind_refuses_what_waits_and_forgets_what_it_owed(tmp_path):
    async with running(tmp_path, 0) as bench:
        await bench.fetched(0)
        slots, poller, far = UploadSlots(8, 8), Poller(), bench.far_end(narrow=True)
        slots.rate_bytes_s = 1.0  # so READY_MOST answers may be ready
        with far.near, closing(Chunks(bench.store.directory)) as chunks:
            uplink = Uplink(far.near, chunks, slots, Served(), 5.0, Throttle(None, UPLOAD))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poller.run)
                nursery.start_soon(uplink.run, poller)
                # In one write: all are read before the first is answered.
                await far.send(*(wait_for(0, request) for request in range(1, READY_MOST + 4)))
                whole, refused = set(), set()
                while len(whole) + len(refused) < READY_MOST + 3:
                    frame = await far.header(dataframe.DOWNWARD)
                    if frame.kind is Kind.BUSY:
                        refused.add(frame.request)
                        continue
                    await far.read(frame.digests + frame.length)
                    whole |= {frame.request} if frame.flags & Flag.LAST else set()
                assert whole == set(range(1, READY_MOST + 2))
                assert slots.ready_bytes == 0
                slots.ready_bytes = 100 * CHUNK  # of other connections
                await far.send(wait_for(0, 50), Header(Kind.REQUEST, 51, 0, 0, CHUNK).encode())
                for _ in range(2):
                    assert (await far.header(dataframe.DOWNWARD)).kind is Kind.BUSY
                demand = Header(Kind.REQUEST, 52, 0, 0, BLOCK, Flag.DEMAND).encode()
                await far.send(demand)
                assert (await block_of(far))[0].request == 52, "a blocked read is served"
                slots.ready_bytes = 0
                cancel = Header(Kind.CANCEL, 62, 0).encode()
                await far.send(*(wait_for(0, request) for request in (60, 61, 62)), cancel)
                assert (await far.header(dataframe.DOWNWARD)).request == 62, "it is over"
                assert (await far.header(dataframe.DOWNWARD)).request == 60
                assert slots.ready_bytes == CHUNK, "of 61 alone"
                nursery.cancel_scope.cancel()
            uplink.close()
            assert slots.ready_bytes == 0


@pytest.mark.parametrize("chunk", [0, 1], ids=["here", "not here"])
async def test_a_flood_of_waiting_requests_ends_the_connection(bench, chunk):
    await bench.fetched(0)
    down = await downstream(bench, narrow=True)
    await down.send(*(wait_for(chunk, request) for request in range(1, WAITING_MOST + 3)))
    assert "flood" in (await bench.report(jobs.LinkClosed)).text


async def test_as_many_waiting_requests_as_may_be_are_no_flood(bench):
    await bench.fetched(2)
    down = await downstream(bench)
    await down.send(*(wait_for(1, request) for request in range(1, WAITING_MOST + 1)))
    await down.send(Header(Kind.REQUEST, 5000, 2, BLOCK, 7).encode())
    assert (await block_of(down))[0].request == 5000


async def test_digests_that_change_between_blocks_end_the_answer_and_not_the_connection(bench):
    up, (data, digests) = await near(bench, jobs.AddDownlink), lies(bench)
    ahead(bench, (7, 0, b""))
    await up.send(*answer(bench, await up.request(), data, digests)[:3])
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    assert (await block_of(down))[1:] == (digests, data[:BLOCK])
    bench.pool.submit(bench.pool.count - 1, bench.fetch_job(0))
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request, frame.status) == (Kind.END, 9, EndStatus.READ_ERROR)
    await bench.report(jobs.Got)
    await down.send(Header(Kind.REQUEST, 10, 0, 0, BLOCK).encode())
    assert (await block_of(down))[1:] == (bench.digests(0), bench.data(0)[:BLOCK])


async def test_what_was_relayed_is_passed_on_no_more_while_the_origin_brings_the_chunk(bench):
    await bench.fetched(2)
    up, (data, digests) = await near(bench, jobs.AddDownlink), lies(bench)
    ahead(bench, (7, 0, b""))
    await up.send(*answer(bench, await up.request(), data, digests)[:3])
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    await block_of(down)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/big"
        bench.pool.submit(0, jobs.FetchJob(0, url, [], "e", "", SIZES["a/big.bin"]))
        bench.pool.submit(0, jobs.RehashJob(2, bench.pin(2)))
        assert (await bench.report(jobs.Got)).chunk == 2, "the job before it has begun"
        await down.send(wait_for(0, 10), Header(Kind.REQUEST, 11, 0, 0, BLOCK).encode())
        await down.send(Header(Kind.CANCEL, 10, 0).encode())
        kinds = [await down.header(dataframe.DOWNWARD) for _ in range(2)]
        assert {(one.kind, one.request) for one in kinds} == {(Kind.NOT_HAVE, 11), (Kind.END, 10)}


async def test_the_end_of_a_cancelled_answer_overtakes_all_blocks_but_the_one_under_way(bench):
    await bench.fetched(0)
    await bench.fetched(1)
    down = await downstream(bench, narrow=True)
    await down.send(wait_for(0, 9), wait_for(1, 10))
    frame = await down.header(dataframe.DOWNWARD)
    await down.send(Header(Kind.CANCEL, 10, 0).encode())
    plain = Header(Kind.REQUEST, 11, 2, 0, BLOCK).encode()
    await down.send(plain)  # it is missing: its answer says that the cancel was read
    seen = [(frame.kind, frame.request)]
    while (Kind.END, 10) not in seen or (Kind.NOT_HAVE, 11) not in seen:
        await down.read(frame.digests + frame.length)
        frame = await down.header(dataframe.DOWNWARD)
        seen.append((frame.kind, frame.request))
    assert (Kind.DATA, 10) not in seen
    assert seen.index((Kind.END, 10)) < CHUNK // BLOCK, "before the last block of the other"


async def test_digests_that_change_while_a_block_is_sent_end_the_answer_behind_it(bench):
    up, (data, digests) = await near(bench, jobs.AddDownlink), lies(bench)
    ahead(bench, (7, 0, b""))
    await up.send(*answer(bench, await up.request(), data, digests)[:6])
    down = await downstream(bench, narrow=True)
    await down.send(wait_for(0, 9))
    frame = await down.header(dataframe.DOWNWARD)
    await bench.fetched(0)  # the rest of the block waits until somebody reads
    await down.read(frame.digests + frame.length)
    frame = await down.header(dataframe.DOWNWARD)
    assert (frame.kind, frame.request, frame.status) == (Kind.END, 9, EndStatus.READ_ERROR)


async def another_is_late(bench: Bench, link: int) -> None:
    """Another peer is asked now, says nothing, and is given up: so long nobody has to answer."""
    clock = bench.far_end()
    bench.pool.submit(0, jobs.AddDownlink(link, b"q" * 16), clock.near)
    bench.pool.submit(0, jobs.AskJob(100 + link, link, 2, bench.pin(2)))
    ended = await bench.report(jobs.AskEnded)
    assert (ended.request, ended.text) == (100 + link, "no byte came in time")
    assert (await bench.report(jobs.LinkClosed)).link == link


@pytest.mark.parametrize("workers", [0, 2])
async def test_silence_is_no_fault_of_who_is_asked_to_wait_but_inside_a_block_it_is(
    tmp_path, workers
):
    async with running(tmp_path, workers, first_byte_s=0.3, stall_s=0.3) as bench:
        up = await near(bench, jobs.AddDownlink)
        ahead(bench, (7, 0, bench.pin(0)), (8, 1, bench.pin(1)))
        first, second = await up.request(), await up.request()
        await another_is_late(bench, 3)
        await up.send(*answer(bench, first, bench.data(0), bench.digests(0), last=True))
        assert (await bench.report(jobs.Got)).request == 7
        await another_is_late(bench, 4)
        frames = answer(bench, second, bench.data(1), bench.digests(1), last=True)
        await up.send(*frames[:3], frames[3], frames[5][:100])
        ended = await bench.report(jobs.AskEnded)
        assert (ended.request, ended.why, ended.text) == (8, "failed", "no byte came in time")
        with closing(Chunks(bench.store.directory)) as chunks:
            assert chunks.missing_range(1) == (BLOCK, CHUNK)


async def test_silence_on_a_plain_request_counts_though_others_wait(tmp_path):
    async with running(tmp_path, 0, first_byte_s=0.3, stall_s=0.3) as bench:
        await near(bench, jobs.AddDownlink)
        ahead(bench, (7, 0, bench.pin(0)))
        bench.pool.submit(0, jobs.AskJob(8, 1, 1, bench.pin(1)))
        ended = {(await bench.report(jobs.AskEnded)).request for _ in range(2)}
        assert ended == {7, 8}


async def test_a_request_is_called_back_only_if_nothing_of_its_answer_has_come(bench):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""), (8, 1, b""))
    begun, quiet = await up.request(), await up.request()
    frames = answer(bench, begun, bench.data(0), bench.digests(0), last=True)
    await up.send(*frames[:3])
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    await block_of(down)  # so it has come
    for request in (7, 8):
        bench.pool.submit(0, jobs.CancelJob(request, idle=True))
    cancel = await up.request()
    assert (cancel.kind, cancel.request) == (Kind.CANCEL, 8)
    await up.send(*frames[3:])
    assert (await bench.report(jobs.Got)).request == 7
    await up.send(Header(Kind.END, 8, quiet.chunk, status=EndStatus.CANCELLED).encode())
    ended = await bench.report(jobs.AskEnded)
    assert (ended.request, ended.why) == (8, "failed")


async def test_what_is_here_by_now_needs_no_request(bench):
    await bench.fetched(0)
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""), (8, 1, b""))
    assert (await up.request()).request == 8
    report = await bench.report(jobs.Got)
    assert (report.request, report.pin) == (7, bench.pin(0))


async def test_on_a_connection_that_is_gone_nothing_waits(bench):
    ahead(bench, (7, 0, b""), (8, 1, b""), link=5)
    for request in (7, 8):
        report = await bench.report(jobs.AskEnded)
        assert (report.request, report.why) == (request, "failed")


async def test_a_lie_that_was_relayed_costs_one_more_request_and_is_never_read(bench):
    up, (data, digests) = await near(bench, jobs.AddDownlink), lies(bench)
    ahead(bench, (7, 0, b""))
    await up.send(*answer(bench, await up.request(), data, digests)[:3])
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    await block_of(down)
    bench.pool.submit(0, jobs.AskJob(8, 1, 0, bench.pin(0)))
    asked = await up.request()
    assert asked.offset == BLOCK, "the first is here, if it is right"
    await up.send(*answer(bench, asked, bench.data(0), bench.digests(0), last=True))
    assert (await bench.report(jobs.AskEnded)).request == 8
    bench.pool.submit(0, jobs.AskJob(10, 1, 0, bench.pin(0)))
    asked = await up.request()
    assert (asked.offset, asked.length) == (0, BLOCK)
    await up.send(*answer(bench, asked, bench.data(0), bench.digests(0), last=True))
    assert (await bench.report(jobs.Got)).request == 10
    assert bench.stored(0) == bench.data(0)


# -- a worker's death -----------------------------------------------------------------------------


async def test_what_waited_at_a_dead_worker_is_answered(tmp_path):
    async with running(tmp_path, 2) as bench:
        up = await near(bench, jobs.AddDownlink)
        ahead(bench, (7, 0, b""), (8, 1, b""))
        await up.request()
        os.kill(bench.pool.pids[0] or 0, signal.SIGKILL)
        assert {(await bench.report(jobs.AskEnded)).request for _ in range(2)} == {7, 8}
        assert (await bench.report(jobs.LinkClosed)).link == 1


async def test_what_a_dead_worker_owed_is_answered_and_the_next_one_works(tmp_path):
    async with running(tmp_path, 2) as bench:
        far = await near(bench, jobs.AddDownlink)
        await bench.fetched(2)
        bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
        await far.request()
        before = bench.pool.totals()
        assert before.origin_bytes == BLOCK + 7
        pid = bench.pool.pids[0]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ended = await bench.report(jobs.AskEnded)
        assert (ended.request, ended.why, ended.text) == (7, "failed", "a data worker died")
        assert (await bench.report(jobs.LinkClosed)).link == 1
        await bench.fetched(0)
        assert bench.stored(0) == bench.data(0)
        assert bench.pool.totals().origin_bytes == before.origin_bytes + CHUNK


async def test_a_dead_workers_fetch_fails_for_now_and_its_hashing_is_done_again(tmp_path):
    async with running(tmp_path, 2) as bench:
        await bench.fetched(0)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        stuck = jobs.FetchJob(2, pipe.as_uri(), [], "", "", 1)  # nobody ever writes into it
        bench.pool.submit(0, stuck)
        bench.pool.submit(0, jobs.RehashJob(0, bench.pin(0)))
        os.kill(bench.pool.pids[0] or 0, signal.SIGKILL)
        ended = await bench.report(jobs.FetchEnded)
        assert (ended.chunk, ended.fatal, ended.text) == (2, False, "a data worker died")
        hashed = await bench.report(jobs.Got)
        assert (hashed.chunk, hashed.source) == (0, "disk")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_all_processes_ends_no_worker_before_the_node_says_so(tmp_path, number):
    async with running(tmp_path, 2) as bench:
        await bench.fetched(0)
        await bench.fetched(1)
        pids = list(bench.pool.pids)
        for pid in pids:
            os.kill(pid or 0, number)
        await bench.fetched(2)
        await bench.fetched(3)
        assert bench.pool.pids == pids


async def test_a_worker_that_dies_at_once_again_and_again_is_the_end(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with trio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await WorkerPool(1, WorkerSettings()).run()
    assert caught.group_contains(StoreError, match="died five times")


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_store_that_a_worker_cannot_open_is_the_end_and_named(tmp_path, workers):
    pool = WorkerPool(workers, WorkerSettings())
    pool.submit(0, jobs.OpenModel(str(tmp_path / "nothing here")))
    with trio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await pool.run()
    assert caught.group_contains(StoreError, match="nothing here")


def own(bench: Bench, asked: Header, data: bytes, digests: bytes) -> list[bytes]:
    """An answer whose blocks come each with its own digest."""
    frames = []
    for at in range(0, CHUNK, BLOCK):
        flags = Flag.OWN | (Flag.LAST if at + BLOCK == CHUNK else Flag.NONE)
        digest = digests[at // BLOCK * 16 :][:16]
        head = Header(Kind.DATA, asked.request, asked.chunk, at, BLOCK, flags, len(digest))
        frames.append(head.encode() + digest + data[at : at + BLOCK])
    return frames


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "no pin"])
async def test_blocks_with_digests_of_their_own_are_passed_on_one_by_one_and_make_the_pin(
    bench, pinned
):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, bench.pin(0) if pinned else b""))
    frames = own(bench, await up.request(), bench.data(0), bench.digests(0))
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    for at, frame in zip(range(0, CHUNK, BLOCK), frames, strict=True):
        await up.send(frame)
        passed, digests, data = await block_of(down)
        assert (passed.offset, data) == (at, bench.data(0)[at : at + BLOCK])
        assert digests == bench.digests(0)[at // BLOCK * 16 :][:16]
    got = await bench.report(jobs.Got)
    assert (got.request, got.pin, got.digests) == (7, bench.pin(0), bench.digests(0))


async def test_a_block_that_is_not_what_its_own_digest_says_is_refused_and_not_passed_on(bench):
    up = await near(bench, jobs.AddDownlink)
    ahead(bench, (7, 0, b""))
    asked, (lie, _) = await up.request(), lies(bench)
    down = await downstream(bench)
    await down.send(wait_for(0, 9))
    data = bench.data(0)[:BLOCK] + lie[BLOCK:]
    await up.send(*own(bench, asked, data, bench.digests(0))[:2])
    ended = await bench.report(jobs.AskEnded)
    assert (ended.request, ended.why) == (7, "corrupt")
    await block_of(down)
    await down.send(Header(Kind.CANCEL, 9, 0).encode())
    assert (await down.header(dataframe.DOWNWARD)).kind is Kind.END


async def test_blocks_of_a_lie_that_agree_with_themselves_do_not_make_a_pin_that_is_known(bench):
    up, (lie, digests) = await near(bench, jobs.AddDownlink), lies(bench)
    ahead(bench, (7, 0, bench.pin(0)))
    await up.send(*own(bench, await up.request(), lie, digests))
    assert (await bench.report(jobs.AskEnded)).why == "failed"
    with closing(Chunks(bench.store.directory)) as chunks:
        assert chunks.missing_range(0) == (0, CHUNK), "nothing of it is kept"


async def test_a_digest_of_its_own_in_a_plain_answer_ends_the_connection(bench):
    up = await near(bench, jobs.AddDownlink)
    bench.pool.submit(0, jobs.AskJob(7, 1, 0, bench.pin(0)))
    await up.send(own(bench, await up.request(), bench.data(0), bench.digests(0))[0])
    ended = await bench.report(jobs.AskEnded)
    assert (ended.why, ended.request) == ("failed", 7)
    assert "own digest" in ended.text
