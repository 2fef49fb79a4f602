"""Existing files in the model dir: copied into the cache where they match pins the swarm knows.

A worker reads each chunk of such a file like any other origin (`file://`), and the pin it computes
is compared with the swarm's. Nothing of a file that differs is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node import jobs
from node.origins.file import file_etag
from node.store import ChunkStore
from node.workers import WorkerPool
from p2p.errors import UsageError
from p2p.ids import Chunk

AT_ONCE = 8  # chunks read at a time: enough to keep two workers and a disk busy


@dataclass(slots=True)
class Adopted:
    """`read_bytes` were read from existing files, `adopted_bytes` of them were right."""

    read_bytes: int = 0
    adopted_bytes: int = 0


async def adopt_existing(
    pool: WorkerPool,
    store: ChunkStore,
    candidates: Mapping[int, Path],
    pins: Mapping[Chunk, bytes],
    replace: bool,
    adopted: Adopted,
) -> None:
    """Read the chunks of `pins` from `candidates` (file index to path) into the store.

    Must run before anything else takes the pool's reports. What was read is counted in `adopted`
    as it comes.

    Raises:
      UsageError: a file differs and `replace` is not set; it names the files.
    """
    manifest = store.manifest
    waiting = sorted(pins, reverse=True)
    differing: set[int] = set()
    under_way = 0
    while waiting or under_way:
        while waiting and under_way < AT_ONCE:
            chunk = waiting.pop()
            path = candidates[manifest.extent(chunk).file]
            job = jobs.FetchJob(
                chunk, path.resolve().as_uri(), [], file_etag(path.stat()), "",
                manifest.files[manifest.extent(chunk).file].size_bytes,
            )  # fmt: skip
            pool.submit(chunk % pool.count, job)
            under_way += 1
        _, report = await pool.reports.receive()
        match report:
            case jobs.Got(chunk=chunk, pin=pin):
                extent = manifest.extent(chunk)
                adopted.read_bytes += extent.length
                if pin == pins[chunk]:
                    under_way -= 1
                    store.record(chunk, pin, report.digests, b"")
                    store.held.add(chunk)
                    adopted.adopted_bytes += extent.length
                else:  # the worker holds what differs for verified: make it look again
                    differing.add(extent.file)
                    pool.submit(chunk % pool.count, jobs.RehashJob(chunk, pins[chunk]))
            case jobs.Damaged() | jobs.FetchEnded():
                under_way -= 1
    if differing and not replace:
        names = ", ".join(manifest.files[file].path for file in sorted(differing))
        raise UsageError(
            f"existing files differ from the model: {names}; move them away, or use --replace"
        )
