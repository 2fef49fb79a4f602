"""Ranges of a chunk as a worker reads them: side by side, resumed, hedged; from the OSS server."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fastcrc
import pytest
import trio
import trio.testing
from support.cluster import make_model
from support.oss import Fault, ObjectGet, OssServer
from support.oss_model import ID, SECRET, options

from node import jobs
from node.chunks import Chunks
from node.fetch import Fetched, Fetcher
from node.origins.base import Origin, open_origin
from node.store import Cache, ChunkStore
from p2p.manifest import Manifest
from p2p.needs import PIECES

KIB, MIB = 1024, 1024**2
CHUNK, BLOCK = 64 * KIB, 32 * KIB


class Bench:
    """A bucket with one object, and a fetcher that reads it into a store."""

    def __init__(self, folder: Path, server: OssServer, manifest: Manifest, origin: Origin) -> None:
        self.server, self.manifest, self.origin = server, manifest, origin
        self.data = (folder / "source" / "model" / "x").read_bytes()
        self.reports: list[jobs.Report] = []
        self.totals = Fetched()
        self._cache = Cache.open(folder / "cache")
        self._store = ChunkStore.open(self._cache, manifest)
        self._chunks = Chunks(self._store.directory)
        self.fetcher = Fetcher(self._chunks, self.totals, self.reports.append)

    async def fetch(self, chunk: int) -> jobs.Got:
        """A chunk, right to the last bit; else the test fails."""
        await self.fetcher.fetch(await self.origin.fetch_job(self.manifest, chunk))
        got = self.reports[-1]
        assert isinstance(got, jobs.Got), got
        extent = self.manifest.extent(chunk)
        data = self.data[extent.offset : extent.offset + extent.length]
        with self._store.file_path(0).open("rb") as stream:
            stream.seek(extent.offset)
            assert stream.read(extent.length) == data
        assert int.from_bytes(got.checksum, "big") == fastcrc.crc64.xz(data)
        return got

    def asked(self, kind: str) -> list[jobs.Requested]:
        """The requests of one kind, as the audit log has them."""
        found = [one for one in self.reports if isinstance(one, jobs.Requested)]
        return [one for one in found if one.kind == kind]

    def close(self) -> None:
        """Release everything."""
        self.fetcher.close()
        self._chunks.close()
        self._store.close()
        self._cache.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., OssServer]]:
    """A bucket with one object of so many bytes."""
    started = []

    def start(size: int) -> OssServer:
        make_model(tmp_path / "source" / "model", 95, {"x": size})
        started.append(OssServer(tmp_path / "source", credentials={ID: SECRET}))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
async def bench(tmp_path, serve, monkeypatch):
    """`await bench(size, chunk, block)`."""
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", SECRET)
    opened = []

    async def start(size: int, chunk: int = CHUNK, block: int = BLOCK) -> Bench:
        server = serve(size)
        origin = open_origin("oss://models/model/x", options(server))
        manifest = await origin.list("m", chunk, block)
        opened.append(Bench(tmp_path, server, manifest, origin))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


async def test_a_chunk_is_read_in_ranges_side_by_side(bench):
    work = await bench(20 * MIB + 5, 32 * MIB, MIB)
    await work.fetch(0)
    spans = sorted((one.start, one.end) for one in work.asked("first"))
    assert spans == [(0, 8 * MIB), (8 * MIB, 16 * MIB), (16 * MIB, 20 * MIB + 5)]
    assert work.totals.bytes == 20 * MIB + 5


async def test_a_cut_range_goes_on_at_the_byte_where_it_ended(bench):
    work = await bench(CHUNK)
    cut = BLOCK + 1000  # inside the second block
    work.server.fault = lambda get: Fault(cut_after=cut) if get.count == 0 else None
    await work.fetch(0)
    assert [(one.start, one.bytes) for one in work.asked("first")] == [(0, cut)]
    assert [(one.start, one.end) for one in work.asked("resume")] == [(cut, CHUNK)]
    assert work.totals.bytes == CHUNK
    assert work.totals.duplicate_bytes == 0


async def test_a_part_is_read_alone_and_is_no_progress_of_a_lease(bench):
    work = await bench(3 * CHUNK)
    job = await work.origin.fetch_job(work.manifest, 1)
    seen: list[dict[int, int]] = []
    work.server.fault = lambda get: seen.append(dict(work.totals.under_way))
    await work.fetcher.fetch(replace(job, start=BLOCK, end=2 * BLOCK, request=7))
    assert work.reports[-1] == jobs.GotBlocks(7, 1)
    assert [(one.start, one.end) for one in work.asked("first")] == [(CHUNK + BLOCK, 2 * CHUNK)]
    assert seen == [{}]
    await work.fetch(1)
    assert work.totals.bytes == CHUNK, "the rest, and no block twice"
    await work.fetcher.fetch(replace(job, start=0, end=BLOCK, request=8))
    assert isinstance(work.reports[-1], jobs.Got), "whole already"
    assert work.reports[-1].request == 8
    assert work.totals.bytes == CHUNK


async def test_a_part_and_the_whole_chunk_at_the_same_time_leave_no_hole(bench):
    work = await bench(CHUNK)
    job = await work.origin.fetch_job(work.manifest, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.fetcher.fetch, replace(job, start=0, end=BLOCK, request=7))
        nursery.start_soon(work.fetcher.fetch, job)
    ends = [one for one in work.reports if isinstance(one, jobs.Got | jobs.GotBlocks)]
    assert sorted(one.request for one in ends) == [0, 7]
    assert work.totals.bytes == CHUNK + work.totals.duplicate_bytes
    assert work.totals.under_way == {}
    await work.fetch(0)
    assert work.totals.bytes == CHUNK + work.totals.duplicate_bytes, "nothing was missing"


async def test_a_part_that_is_refused_says_which_it_was(bench):
    work = await bench(CHUNK)
    work.server.fault = lambda get: "403"
    job = await work.origin.fetch_job(work.manifest, 0)
    await work.fetcher.fetch(replace(job, start=0, end=BLOCK, request=7))
    ended = work.reports[-1]
    assert isinstance(ended, jobs.FetchEnded)
    assert (ended.request, ended.chunk, ended.status) == (7, 0, 403)


async def test_after_a_need_the_next_one_finds_connections(bench):
    work = await bench(CHUNK)
    job = replace(await work.origin.fetch_job(work.manifest, 0), start=0, end=BLOCK)
    await work.fetcher.warm(job)
    assert repr(work.fetcher.wires) == f"<Wires idle={PIECES}>"
    await work.fetcher.fetch(job)
    await work.fetcher.warm(job)
    assert repr(work.fetcher.wires) == f"<Wires idle={PIECES}>", "it took those that were there"


async def warm(work: Bench, chunks: int) -> None:
    """Enough quick requests to know what is slow, and to be allowed one hedge."""
    for chunk in range(chunks):
        await work.fetch(chunk)
    assert work.asked("hedge") == []


async def test_a_range_slower_than_nearly_all_others_is_asked_for_again_and_taken_from_there(bench):
    work = await bench(103 * CHUNK)
    await warm(work, 100)
    work.server.fault = lambda get: Fault(stall_after=1000) if get.count == 100 else None
    await work.fetch(100)
    (hedge,) = work.asked("hedge")
    first = work.asked("first")[-1]
    assert first.start == 100 * CHUNK
    assert first.bytes <= 1000, "on a quick connection they may be in the kernel still"
    assert 100 * CHUNK <= hedge.start <= 100 * CHUNK + 1000, (
        "what had come by then is not asked for"
    )
    assert (hedge.end, hedge.bytes) == (101 * CHUNK, 101 * CHUNK - hedge.start)
    assert work.asked("resume") == []
    # One in a hundred and no more: the next slow one is cut and resumed.
    work.server.fault = lambda get: Fault(stall_after=1000) if get.start == 101 * CHUNK else None
    await work.fetch(101)
    assert len(work.asked("hedge")) == 1
    assert len(work.asked("resume")) == 1


async def test_what_is_slow_for_a_reader_is_told_by_requests_for_readers(bench):
    """Theirs are short: by the others' time a second one would come much too late."""
    work = await bench(102 * CHUNK)
    for chunk in range(100):
        job = await work.origin.fetch_job(work.manifest, chunk)
        await work.fetcher.fetch(replace(job, start=0, end=BLOCK, request=chunk + 1))
        assert isinstance(work.reports[-1], jobs.GotBlocks)
    assert work.asked("hedge") == []
    stall_once = {100: Fault(stall_after=1000), 102: Fault(stall_after=1000)}
    work.server.fault = lambda get: stall_once.get(get.count)
    await work.fetch(100)
    assert (work.asked("hedge"), len(work.asked("resume"))) == ([], 1), "of others none is known"
    job = await work.origin.fetch_job(work.manifest, 101)
    await work.fetcher.fetch(replace(job, start=0, end=BLOCK, request=101))
    (hedge,) = work.asked("hedge")
    assert 101 * CHUNK <= hedge.start <= 101 * CHUNK + 1000, (
        "what had come by then is not asked for"
    )
    assert hedge.end == 101 * CHUNK + BLOCK


async def test_a_hedge_that_loses_is_counted_as_bytes_twice_and_changes_nothing(bench):
    work = await bench(102 * CHUNK)
    await warm(work, 100)

    def fault(get: ObjectGet) -> Fault | None:
        if get.count == 100:
            return Fault(rate_bytes_s=CHUNK * 2)  # slow, and done in half a second
        return Fault(stall_after=500) if get.count == 101 else None

    work.server.fault = fault
    before = work.totals.bytes
    await work.fetch(100)
    (hedge,) = work.asked("hedge")
    assert hedge.bytes <= 500, "what came of it after the head may be in the kernel still"
    assert work.totals.bytes - before == CHUNK + hedge.bytes
    assert work.totals.duplicate_bytes == hedge.bytes


# -- a reader in a hurry --------------------------------------------------------------------------

PART = 64 * KIB
SIXTEEN = 16 * PART


async def large(bench, chunks: int) -> Bench:
    """Chunks of sixteen blocks (`PART`), each a range of its own."""
    work: Bench = await bench(chunks * SIXTEEN, SIXTEEN, PART)
    return work


async def here(work: Bench, chunk: int, blocks: range) -> None:
    """Blocks of a chunk have come."""
    with trio.fail_after(10):
        for block in blocks:
            while not work._chunks.verified(chunk, block * PART, PART):
                await trio.sleep(0.005)


async def test_a_hurry_asks_an_origin_that_refuses_no_sooner(bench):
    work = await large(bench, 1)
    refused = Fault(503, "DownloadTrafficRateLimitExceeded", delay_ms=600)
    work.server.fault = lambda get: refused if get.count == 0 else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.fetch, 0)
        with trio.fail_after(10):
            while not any(span.resting for span in work.fetcher.spans.all):
                await trio.sleep(0.005)
        work.fetcher.hurry(0, 0, 12 * PART)
        await trio.testing.wait_all_tasks_blocked()
        assert len(work.fetcher.spans.all) == 1
    assert [one.status for one in work.asked("first")] == [503]
    assert [one.status for one in work.asked("retry")] == [206]


async def busy(work: Bench, nursery: trio.Nursery, gate: threading.Event) -> None:
    """Chunks 0 to 3 take all slots until the gate opens."""
    work.server.fault = lambda get: _passed(gate) if get.start < 4 * SIXTEEN else None
    for chunk in range(4):
        nursery.start_soon(work.fetch, chunk)
    with trio.fail_after(10):
        while sum(span.request is not None for span in work.fetcher.spans.all) < 4:
            await trio.sleep(0.005)


def _passed(gate: threading.Event) -> None:
    gate.wait(20)


async def test_a_second_hurry_at_once_is_heard_by_what_the_first_one_began(bench):
    work, gate = await large(bench, 5), threading.Event()
    async with trio.open_nursery() as nursery:
        await busy(work, nursery, gate)
        nursery.start_soon(work.fetch, 4)
        with trio.fail_after(10):
            while not any(span.job.chunk == 4 for span in work.fetcher.spans.all):
                await trio.sleep(0.005)
        work.fetcher.hurry(4, 8 * PART, 10 * PART)
        work.fetcher.hurry(4, 8 * PART, 14 * PART)
        await here(work, 4, range(8, 14))
        assert not work._chunks.verified(4, 14 * PART, PART), "that waits for a slot"
        gate.set()


async def test_a_hurry_while_another_reader_is_served_is_heard_when_the_rest_begins(bench):
    work, gate, first = await large(bench, 5), threading.Event(), threading.Event()
    async with trio.open_nursery() as nursery:
        await busy(work, nursery, gate)
        slow = work.server.fault
        work.server.fault = lambda g: _passed(first) if g.start == 4 * SIXTEEN else slow(g)
        job = replace(await work.origin.fetch_job(work.manifest, 4), start=0, end=PART)
        nursery.start_soon(work.fetcher.fetch, job)
        with trio.fail_after(10):
            while not any(span.urgent and span.request for span in work.fetcher.spans.all):
                await trio.sleep(0.005)
        work.fetcher.hurry(4, 8 * PART, 10 * PART)
        first.set()
        await here(work, 4, range(8, 10))
        assert not work._chunks.verified(4, 14 * PART, PART), "that waits for a slot"
        gate.set()


async def test_the_audit_names_the_range_that_was_asked_for(bench, monkeypatch):
    """It was cut while a connection was being made."""
    work, dialled = await large(bench, 1), trio.Event()
    take = work.fetcher.wires.take

    async def slow(*args: object) -> object:
        await dialled.wait()
        return await take(*args)

    monkeypatch.setattr(work.fetcher.wires, "take", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.fetch, 0)
        await trio.testing.wait_all_tasks_blocked()
        work.fetcher.hurry(0, 4 * PART, 10 * PART)
        dialled.set()
    asked = sorted((one.start // PART, one.end // PART) for one in work.asked("first"))
    assert asked == [(0, 4), (4, 6), (6, 8), (8, 10), (10, 16)]


async def test_a_hedge_that_wins_counts_what_others_took_from_its_range_meanwhile(bench):
    work, gate = await large(bench, 102), threading.Event()
    await warm(work, 101)
    before = work.totals.bytes
    faults = {101: lambda: Fault(stall_after=1000), 102: lambda: _passed(gate)}
    work.server.fault = lambda get: faults[get.count]() if get.count in faults else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.fetch, 101)
        with trio.fail_after(10):
            while work.server.object_gets < 103:
                await trio.sleep(0.005)
        work.fetcher.hurry(101, 4 * PART, 10 * PART)
        await here(work, 101, range(4, 16))
        gate.set()
    assert len(work.asked("hedge")) == 1
    assert work.totals.bytes - before - work.totals.duplicate_bytes == SIXTEEN
