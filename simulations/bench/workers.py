"""What more data workers bring: moving a model from node to node, and hashing one that is there.

Moving: as in `peer`, with 1, 2 and 4 workers on both sides, and an address for each worker, so that
each has a data connection. CPU seconds are of both sides, without the reader's start-up, which is
what 64 KiB cost with as many workers, and is shown. Each run has a tracker and a seeder of its own:
the seeder starts from a cache that is complete.

Hashing: every chunk of a model that is in tmpfs, by real `RehashJob`s in a real pool, with 1 and 2
workers. CPU seconds are of the workers and of the process that gives the jobs.
"""

import os
import shutil
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from rich.table import Table

from node import jobs
from node.chunks import Chunks
from node.origins.file import file_etag
from node.store import Cache, ChunkStore
from node.worker import WorkerSettings
from node.workers import WorkerPool
from p2p.digest import chunk_pin
from p2p.manifest import DEFAULT_BLOCK_BYTES, DEFAULT_CHUNK_BYTES, File, Manifest
from p2p.units import format_size
from simulations.bench.peer import SMALL_BYTES, download, seeder
from simulations.bench.processes import (
    GB,
    TMPFS,
    check_space,
    console,
    cpu_s,
    end_in_order,
    machine,
    read_size,
    show_machine,
    show_ratio,
    tracker,
    write_json,
    write_random,
)

MOVING, HASHING = (1, 2, 4), (1, 2)


@dataclass(frozen=True, slots=True)
class Run:
    """One run with so many workers."""

    gb_per_s: float
    cpu_s_per_gb: float
    start_s: float = 0.0
    """CPU seconds of the reader's start-up, which are not in the others"""


# -- moving ---------------------------------------------------------------------------------------


class Moving:
    """One model and a small one, each with a seeder's cache that every run starts from."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._sources = {size: folder / "model.bin", SMALL_BYTES: folder / "small.bin"}
        for one, source in self._sources.items():
            write_random(source, one)
            self._seeder(one).mkdir()

    def _seeder(self, size: int) -> Path:
        return self._folder / f"seeder-{self._sources[size].stem}"

    def _moved(self, size: int, workers: int) -> tuple[float, float]:
        """CPU seconds of both sides, and the node's own seconds."""
        source, to = self._sources[size], self._folder / "copy"
        to.mkdir()
        try:
            with (
                tracker() as (_, address),
                seeder(address, source, self._seeder(size), workers, size) as pid,
            ):
                usage, served_s, own_s = download(address, source, to, workers, pid)
        finally:
            shutil.rmtree(to)
        return usage.cpu_s + served_s, own_s

    def run(self, workers: int) -> Run:
        """The model once, less what the small one costs."""
        start_s, _ = self._moved(SMALL_BYTES, workers)
        both_s, own_s = self._moved(self._size, workers)
        gb = self._size / GB
        return Run(gb / own_s, (both_s - start_s) / gb, start_s)


# -- hashing --------------------------------------------------------------------------------------


class Hashing:
    """A model in a store, as a node has it after a boot: there, and not yet hashed."""

    def __init__(self, folder: Path, size: int) -> None:
        self._size = size
        source = folder / "hashed.bin"
        write_random(source, size)
        entry = File("hashed.bin", size, file_etag(source.stat()))
        manifest = Manifest("m", "", (entry,), DEFAULT_CHUNK_BYTES, DEFAULT_BLOCK_BYTES)
        self._cache = Cache.open(folder / "cache")
        self._store = ChunkStore.open(self._cache, manifest)
        source.replace(self._store.file_path(0))
        with closing(Chunks(self._store.directory)) as chunks:
            self._pins = [
                chunk_pin([chunks.check(chunk, block) for block in range(blocks)])
                for chunk in range(manifest.chunk_count)
                if (blocks := manifest.block_count(chunk))
            ]

    def close(self) -> None:
        """Release the cache."""
        self._store.close()
        self._cache.close()

    def run(self, workers: int) -> Run:
        """All chunks once, in a pool that has started."""
        return trio.run(self._run, workers)

    async def _run(self, workers: int) -> Run:
        pool, gb = WorkerPool(workers, WorkerSettings()), self._size / GB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            for worker in range(pool.count):
                pool.submit(worker, jobs.OpenModel(str(self._store.directory)))
                pool.submit(worker, jobs.RehashJob(0, self._pins[0]))
            await self._answers(pool, pool.count)
            before, begin = cpu_s(os.getpid()), time.perf_counter()
            for chunk, pin in enumerate(self._pins):
                pool.submit(chunk % pool.count, jobs.RehashJob(chunk, pin))
            await self._answers(pool, len(self._pins))
            seconds = time.perf_counter() - begin
            used_s = cpu_s(os.getpid()) - before
            nursery.cancel_scope.cancel()
        return Run(gb / seconds, used_s / gb)

    async def _answers(self, pool: WorkerPool, count: int) -> None:
        for _ in range(count):
            _, report = await pool.reports.receive()
            if not isinstance(report, jobs.Got):
                raise SystemExit(f"a chunk is damaged: {report}")


# -- the command ----------------------------------------------------------------------------------


def rounds(
    what: str, bench: Moving | Hashing, counts: tuple[int, ...], runs: int, *, warm_up: bool
) -> dict[int, list[Run]]:
    """Each count once in each round; one more round before the first is not counted."""
    found: dict[int, list[Run]] = {workers: [] for workers in counts}
    for number in range(0 if warm_up else 1, runs + 1):
        for workers in counts:
            run = bench.run(workers)
            if number:
                found[workers].append(run)
            console.print(
                f"{'run' if number else 'warm-up'}: {what}, workers {workers}: "
                f"{run.cpu_s_per_gb:.3f} CPU s/GB, {run.gb_per_s:.2f} GB/s"
            )
    return found


def ratios(found: dict[int, list[Run]], workers: int, figure: str) -> list[float]:
    """So many workers to one, round by round."""
    pairs = zip(found[workers], found[1], strict=True)
    return [getattr(many, figure) / getattr(one, figure) for many, one in pairs]


def _show(what: str, found: dict[int, list[Run]], figure: str, text: str) -> None:
    table = Table(f"{what}, workers", "GB/s", "CPU s/GB", "start-up s")
    for workers, of in found.items():
        table.add_row(
            str(workers), f"{statistics.median(run.gb_per_s for run in of):.2f}",
            f"{statistics.median(run.cpu_s_per_gb for run in of):.3f}",
            f"{statistics.median(run.start_s for run in of):.2f}",
        )  # fmt: skip
    console.print(table)
    for workers in list(found)[1:]:
        show_ratio(f"{text}, {workers} workers to one", ratios(found, workers, figure))


def measure(
    size_text: str,
    runs: int,
    json_file: Path | None,
    moving: tuple[int, ...] = MOVING,
    *,
    warm_up: bool = True,
) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: something is missing, or a program failed.
    """
    size = read_size(size_text)
    check_space(size, copies=3)
    end_in_order()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS) as folder:
        moved = rounds("moving", Moving(Path(folder), size), moving, runs, warm_up=warm_up)
    with (
        tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS) as folder,
        closing(Hashing(Path(folder), size)) as hashing,
    ):
        hashed = rounds("hashing", hashing, HASHING, runs, warm_up=warm_up)
    _show("moving", moved, "cpu_s_per_gb", "CPU per GB")
    _show("hashing", hashed, "gb_per_s", "GB/s")
    console.print(f"{format_size(size)}, medians of {runs} rounds after a warm-up")
    result = {
        "bench": "workers", "size_bytes": size, **where,
        "moving": {str(count): [asdict(one) for one in of] for count, of in moved.items()},
        "hashing": {str(count): [asdict(one) for one in of] for count, of in hashed.items()},
        "command": f"python -m simulations bench workers --size {size_text} --runs {runs}",
    }  # fmt: skip
    show_machine(result)
    write_json(result, json_file)
