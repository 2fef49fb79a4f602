"""Hashing one block of 1 MiB: its digest, and the stores' own checksums.

`in cache` is a block that has just been received: the same one again and again. `from memory` goes
through 256 MiB, as a rehash does.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from rich.table import Table

from node.checksums import checksum_function
from p2p.digest import block_digest
from p2p.units import MIB
from simulations.bench.processes import GB, console, machine, show_machine, write_json

BLOCK, BLOCKS, RUNS = MIB, 256, 5


def functions() -> dict[str, Callable[[memoryview], Any]]:
    """What is computed of blocks, by name."""
    return {"xxh3-128": block_digest, "crc64xz": checksum_function("crc64xz"),
            "crc64nvme": checksum_function("crc64nvme")}  # fmt: skip


def gb_per_s(function: Callable[[memoryview], Any], blocks: list[memoryview]) -> float:
    """One pass over blocks."""
    begin = time.perf_counter()
    for block in blocks:
        function(block)
    return len(blocks) * len(blocks[0]) / (time.perf_counter() - begin) / GB


def measure(json_file: Path | None, blocks: int = BLOCKS, runs: int = RUNS) -> None:
    """Print the figures, and write them if a file is named."""
    where = machine()
    data = memoryview(bytearray(Random(0).randbytes(BLOCK) * blocks))
    parts = {
        "in cache": [data[:BLOCK]] * blocks,
        "from memory": [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)],
    }
    found = {
        name: {
            part: [gb_per_s(function, views) for _ in range(runs)] for part, views in parts.items()
        }
        for name, function in functions().items()
    }
    table = Table("GB/s of one core", *parts)
    for name, figures in found.items():
        table.add_row(name, *(f"{statistics.median(figures[part]):.1f}" for part in parts))
    console.print(table)
    console.print(f"blocks of 1 MiB, medians of {runs} passes over {blocks}")
    result = {"bench": "hash", "block_bytes": BLOCK, "gb_per_s": found, **where,
              "command": "python -m simulations bench hash"}  # fmt: skip
    show_machine(result)
    write_json(result, json_file)
