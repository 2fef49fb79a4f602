"""The chunk store's own cost at 65,536 chunks (1 TiB): to open, to record a chunk, the journal.

Sparse files in tmpfs, so that the figures are the program's and not a disk's: each record is one
`write`, and nothing is waited for.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.table import Table

from node.journal import Contents, Journal, read_journal
from node.store import Cache, ChunkStore
from p2p.digest import DIGEST_BYTES, chunk_pin
from p2p.manifest import DEFAULT_BLOCK_BYTES, DEFAULT_CHUNK_BYTES, File, Manifest
from simulations.bench.processes import TMPFS, console, machine, show_machine, write_json

CHUNKS, RUNS = 65_536, 5


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def one_run(folder: Path, chunks: int) -> dict[str, float]:
    """Microseconds a chunk of each step."""
    size = chunks * DEFAULT_CHUNK_BYTES
    manifest = Manifest("m", "", (File("big", size, "e"),), DEFAULT_CHUNK_BYTES,
                        DEFAULT_BLOCK_BYTES)  # fmt: skip
    blocks = manifest.blocks_per_chunk
    digests = [chunk.to_bytes(DIGEST_BYTES, "big") * blocks for chunk in range(chunks)]
    pins = [chunk_pin(joined) for joined in digests]
    opened: list[ChunkStore] = []
    with closing(Cache.open(folder / "cache")) as cache:

        def open_store() -> None:
            opened.append(ChunkStore.open(cache, manifest))

        def record_all() -> None:
            for chunk in range(chunks):
                opened[-1].record(chunk, pins[chunk], digests[chunk], bytes(8))

        taken = {"open, new": seconds(open_store), "record a chunk": seconds(record_all)}
        with closing(Journal(folder / "journal", Contents())) as journal:

            def append_all() -> None:
                for chunk in range(chunks):
                    journal.append(["chunk", chunk, pins[chunk], digests[chunk], bytes(8)])

            taken["of that, the journal"] = seconds(append_all)
        taken["read the journal"] = seconds(lambda: read_journal(folder / "journal"))
        opened.pop().close()
        taken["open, all chunks held"] = seconds(open_store)
        if not all(chunk in opened[-1].held for chunk in range(chunks)):
            raise SystemExit("the store does not hold what was recorded")
        opened.pop().close()
    return {step: 1e6 * one / chunks for step, one in taken.items()}


def measure(json_file: Path | None, chunks: int = CHUNKS, runs: int = RUNS) -> None:
    """Print the figures, and write them if a file is named."""
    where, found = machine(), []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS) as folder:
            found.append(one_run(Path(folder), chunks))
    table = Table("step", "us a chunk", f"s for {chunks:,}")
    for step in found[0]:
        median = statistics.median(run[step] for run in found)
        table.add_row(step, f"{median:.1f}", f"{median * chunks / 1e6:.2f}")
    console.print(table)
    console.print(f"{chunks:,} chunks of 16 MiB, medians of {runs} runs")
    result = {"bench": "store", "chunks": chunks, "runs_us": found, **where,
              "command": "python -m simulations bench store"}  # fmt: skip
    show_machine(result)
    write_json(result, json_file)
