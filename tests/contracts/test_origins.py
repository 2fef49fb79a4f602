"""What every origin promises: `file://`, a real nginx, a plain HTTP server and one with TLS."""

import os
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trustme
from support.cluster import make_model
from support.faulty import FaultyOrigin

from node import jobs
from node.chunks import Chunks
from node.fetch import Fetched, Fetcher
from node.origins.base import open_origin
from node.store import Cache, ChunkStore
from node.throttle import DOWNLOAD, Throttle
from node.tls import tls_context
from p2p.digest import block_digest, chunk_pin
from p2p.errors import OriginError

KIB = 1024
CHUNK, BLOCK = 64 * KIB, 16 * KIB
SIZES = {"big.bin": 200 * KIB + 1, "a b/täxt %41+&?#.json": 300, "d/empty": 0, "d/one": 1}


@dataclass
class Place:
    """A folder that is served, and its URL."""

    root: Path
    url: str


@pytest.fixture(params=["file", "nginx", "http", "https"])
def place(request, tmp_path, monkeypatch) -> Callable[..., Place]:
    """Serve a folder in one of the ways an origin is reached."""
    started = []

    def serve(sizes: dict[str, int]) -> Place:
        root = tmp_path / "model"
        root.mkdir()
        make_model(root, 71, sizes)
        if request.param == "file":
            return Place(root, root.as_uri() + "/")
        if request.param == "nginx":
            nginx = request.getfixturevalue("nginx")
            return Place(root, nginx(root).url)
        tls = None
        if request.param == "https":
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            tls_context.cache_clear()
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(tls)
        started.append(FaultyOrigin(root, tls=tls))
        return Place(root, started[-1].url)

    yield serve
    for origin in started:
        origin.close()
    tls_context.cache_clear()


class Reader:
    """Fetches chunks as a worker does, into a store of its own."""

    def __init__(self, folder: Path, manifest) -> None:
        self.reports: list[jobs.Report] = []
        self.totals = Fetched()
        self._cache = Cache.open(folder)
        self.store = ChunkStore.open(self._cache, manifest)
        self._chunks = Chunks(self.store.directory)
        self.download = Throttle(None, DOWNLOAD)
        self.fetcher = Fetcher(
            self._chunks, self.totals, self.reports.append, throttle=self.download
        )

    async def fetch(self, job: jobs.FetchJob) -> jobs.Report:
        """Carry out one job; returns its outcome."""
        await self.fetcher.fetch(job)
        return self.reports[-1]

    def close(self) -> None:
        """Release everything."""
        self.fetcher.close()
        self._chunks.close()
        self.store.close()
        self._cache.close()


@pytest.fixture
async def reader(tmp_path):
    """`reader(manifest)` gives a Reader, closed at the end."""
    opened = []

    def start(manifest) -> Reader:
        opened.append(Reader(tmp_path / "cache", manifest))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


async def test_a_listing_names_every_file_with_its_size_and_a_validator(place):
    here = place(SIZES)
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert {file.path: file.size_bytes for file in manifest.files} == SIZES
    assert all(file.etag for file in manifest.files)
    assert manifest.model == "m"
    assert manifest == await origin.list("m", CHUNK, BLOCK), "the same files, the same revision"
    await origin.aclose()


async def test_a_limited_download_takes_its_time_whatever_the_origin_is(place, reader):
    here = place({"big.bin": 256 * KIB})
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    work = reader(manifest)
    rate = 500_000
    work.download.set(rate)
    begin = time.monotonic()
    for chunk in range(manifest.chunk_count):
        got = await work.fetch(await origin.fetch_job(manifest, chunk))
        assert isinstance(got, jobs.Got), got
    assert time.monotonic() - begin >= (256 * KIB - 0.03 * rate) / rate
    assert work.totals.bytes == 256 * KIB
    await origin.aclose()


async def test_what_a_reader_is_blocked_on_comes_first(place, reader):
    here = place({"big.bin": 200 * KIB + 1})
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    work = reader(manifest)
    job = replace(await origin.fetch_job(manifest, 1), start=2 * BLOCK, end=3 * BLOCK)
    got = await work.fetch(job)
    assert isinstance(got, jobs.Got), got
    data = (here.root / "big.bin").read_bytes()[CHUNK : 2 * CHUNK]
    assert got.digests == b"".join(
        block_digest(data[at : at + BLOCK]) for at in range(0, CHUNK, BLOCK)
    )
    ranges = [(one.start, one.end) for one in work.reports if isinstance(one, jobs.Requested)]
    if here.url.startswith("http"):
        assert ranges[0] == (CHUNK + 2 * BLOCK, CHUNK + 3 * BLOCK)
        assert sorted(ranges[1:]) == [(CHUNK, CHUNK + 2 * BLOCK), (CHUNK + 3 * BLOCK, 2 * CHUNK)]
    assert work.totals.bytes == CHUNK, "each byte once"
    assert work.totals.duplicate_bytes == 0
    await origin.aclose()


async def test_a_fetch_under_way_hurries_to_what_a_reader_needs(nginx, tmp_path, reader):
    """At 32 KiB a second the fourth block would come after the second and third."""
    root = tmp_path / "model"
    root.mkdir()
    make_model(root, 72, {"big.bin": 12 * BLOCK})
    origin = open_origin(nginx(root, "limit_rate 32k;").url)
    manifest = await origin.list("m", 12 * BLOCK, BLOCK)
    work = reader(manifest)
    job = await origin.fetch_job(manifest, 0)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.fetcher.fetch, job)
            with closing(Chunks(work.store.directory)) as chunks:
                while not chunks.verified(0, 0, BLOCK):
                    await trio.sleep(0.01)
                work.fetcher.hurry(0, 9 * BLOCK, 10 * BLOCK)
                while not chunks.verified(0, 9 * BLOCK, BLOCK):
                    await trio.sleep(0.01)
                assert not chunks.verified(0, 5 * BLOCK, 4 * BLOCK), "in its turn it would be later"
    (got,) = [one for one in work.reports if isinstance(one, jobs.Got)]
    data = (root / "big.bin").read_bytes()
    assert got.digests == b"".join(
        block_digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)
    )
    await origin.aclose()


@pytest.mark.parametrize("busy", [0, 4], ids=["under way", "waits for a slot"])
async def test_what_is_hurried_to_comes_in_pieces_at_the_same_time(nginx, tmp_path, reader, busy):
    """On a connection of its own, 384 KiB would take as long as all the chunk."""
    root, block, size = tmp_path / "model", 64 * KIB, 12 * 64 * KIB
    root.mkdir()
    make_model(root, 73, {"big.bin": (busy + 1) * size})
    origin = open_origin(nginx(root, "limit_rate 128k;").url)
    manifest = await origin.list("m", size, block)
    work = reader(manifest)
    job, spans = await origin.fetch_job(manifest, busy), work.fetcher.spans
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for chunk in range(busy):
                nursery.start_soon(work.fetcher.fetch, await origin.fetch_job(manifest, chunk))
            while sum(span.request is not None for span in spans.all) < busy:
                await trio.sleep(0.01)
            nursery.start_soon(work.fetcher.fetch, job)
            wanted = [busy > 0]
            while [s.request is None for s in spans.all if s.job.chunk == busy] != wanted:
                await trio.sleep(0.01)
            work.fetcher.hurry(busy, 4 * block, 10 * block)
    (got,) = [x for x in work.reports if isinstance(x, jobs.Got) and x.chunk == busy]
    data = (root / "big.bin").read_bytes()[busy * size :]
    assert got.digests == b"".join(
        block_digest(data[at : at + block]) for at in range(0, size, block)
    )
    asked = [(x.start // block - 12 * busy, x.end // block - 12 * busy)
             for x in work.reports
             if isinstance(x, jobs.Requested) and x.start >= busy * size]  # fmt: skip
    whole = (0, 4 if busy else 12)
    assert sorted(asked) == [whole, (4, 6), (6, 8), (8, 10), (10, 12)]
    assert work.totals.duplicate_bytes == 0
    await origin.aclose()


async def test_a_local_listing_reads_no_byte_of_any_file(tmp_path):
    def read_bytes() -> int:
        words = Path("/proc/self/io").read_text().split()
        return int(words[words.index("rchar:") + 1])

    root = tmp_path / "model"
    root.mkdir()
    with (root / "sparse").open("wb") as stream:
        stream.truncate(1 << 30)
    before = read_bytes()
    manifest = await open_origin(root.as_uri() + "/").list("m", 1 << 24, 1 << 20)
    assert manifest.total_bytes == 1 << 30
    assert read_bytes() - before < 64 * KIB, "this measurement, and a module that is imported"


async def test_every_chunk_is_read_whole_once_and_right(place, reader):
    here = place(SIZES)
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    work = reader(manifest)
    for chunk in range(manifest.chunk_count):
        got = await work.fetch(await origin.fetch_job(manifest, chunk))
        assert isinstance(got, jobs.Got), got
        extent = manifest.extent(chunk)
        data = (here.root / manifest.files[extent.file].path).read_bytes()
        data = data[extent.offset : extent.offset + extent.length]
        blocks = [block_digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        assert got.digests == b"".join(blocks)
        assert got.pin == chunk_pin(blocks)
    for name in SIZES:
        path = work.store.directory / "files" / name
        assert path.read_bytes() == (here.root / name).read_bytes()
    assert work.totals.bytes == sum(SIZES.values())


async def test_a_file_that_changed_since_the_listing_is_a_fatal_error(place, reader):
    here = place({"x": 100 * KIB})
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    path = here.root / "x"
    path.write_bytes(path.read_bytes()[::-1] + b"!")
    ended = await reader(manifest).fetch(await origin.fetch_job(manifest, 0))
    assert isinstance(ended, jobs.FetchEnded)
    assert ended.fatal
    assert "changed" in ended.text
    assert "/x" in ended.text


@pytest.mark.parametrize(("size", "words"), [(100 * KIB, "changed"), (BLOCK, "shorter")])
async def test_a_local_file_that_changes_while_it_is_read_is_a_fatal_error(
    tmp_path, reader, size, words
):
    root = make_model(tmp_path / "model", 72, {"x": 100 * KIB})
    origin = open_origin(root.as_uri() + "/")
    manifest = await origin.list("m", CHUNK, BLOCK)
    work = reader(manifest)
    job = await origin.fetch_job(manifest, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.fetcher.fetch, job)
        while not work.totals.bytes:
            await trio.lowlevel.checkpoint()
        assert work.totals.bytes < CHUNK, "in the middle of it"
        os.truncate(root / "x", 0)
        os.truncate(root / "x", size)
    (ended,) = work.reports
    assert isinstance(ended, jobs.FetchEnded)
    assert ended.fatal
    assert words in ended.text


async def test_a_file_that_is_gone_is_a_fatal_error(place, reader):
    here = place({"x": 100 * KIB})
    origin = open_origin(here.url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    (here.root / "x").unlink()
    ended = await reader(manifest).fetch(await origin.fetch_job(manifest, 0))
    assert isinstance(ended, jobs.FetchEnded)
    assert ended.fatal


async def test_one_file_can_be_named_alone(place, reader):
    here = place(SIZES)
    origin = open_origin(here.url + "big.bin")
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert [(file.path, file.size_bytes) for file in manifest.files] == [
        ("big.bin", SIZES["big.bin"])
    ]
    assert isinstance(await reader(manifest).fetch(await origin.fetch_job(manifest, 1)), jobs.Got)


async def test_what_is_not_there_and_what_is_empty_is_named(place):
    here = place({})
    with pytest.raises(OriginError, match="no files") as caught:
        await open_origin(here.url).list("m", CHUNK, BLOCK)
    assert caught.value.fatal
    with pytest.raises(OriginError, match="missing") as caught:
        await open_origin(here.url + "missing/").list("m", CHUNK, BLOCK)
    assert caught.value.fatal
