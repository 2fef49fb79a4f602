"""Reading a model from its first byte to its last while the node loads it, beside the load alone.

Namespaces as in `simulations.netlab`; another node holds everything. In turns, with an empty cache:

    plain    a node joins; from the moment that it knows the model to its last block
    read     the same, and a program reads the file in order through `node.open_model` as fast as it
             gets it: to the last byte read, and to the first one
"""

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from node.reader import open_model
from p2p.units import MIB, format_size
from simulations.bench.latency import FILE, Programs, maps
from simulations.bench.processes import (
    TMPFS,
    check_space,
    console,
    end_in_order,
    machine,
    show_machine,
    write_json,
)
from simulations.case import Case
from simulations.netlab import laid, wait_for
from simulations.netns import NetError

PIECE = MIB
LOOK_S = 0.001


class Turns:
    """Loads of the first node, one after the other."""

    def __init__(self, programs: Programs) -> None:
        self._programs, self._case = programs, programs.case
        self._blocks = self._case.size // self._case.block_bytes

    def whole(self, number: int) -> None:
        """A node joins, and gets everything."""
        with maps([self._programs.join(number)]) as (state,):
            wait_for(lambda: state.find_missing(0, self._blocks) < 0, "a whole node", limit_s=120)

    def plain(self) -> float:
        """Seconds to the last block."""
        with maps([self._programs.join(0)]) as (state,):
            begin = time.perf_counter()
            while state.find_missing(0, self._blocks) >= 0:
                time.sleep(LOOK_S)
            seconds = time.perf_counter() - begin
        self._programs.leave(0)
        return seconds

    def read(self) -> tuple[float, float]:
        """Seconds to the first byte read, and to the last."""
        cache = self._programs.join(0)
        buffer, first_s = bytearray(PIECE), 0.0
        with maps([cache]):
            begin = time.perf_counter()
            with (
                open_model(socket=cache / "reader.sock", timeout_s=30) as model,
                model.open(FILE) as stream,
            ):
                at = stream.readinto(memoryview(buffer)[:4096]) or 0
                first_s = time.perf_counter() - begin
                self._programs.check(0, bytes(buffer[:at]))
                while count := stream.readinto(buffer):
                    self._programs.check(at, bytes(memoryview(buffer)[:count]))
                    at += count
            seconds = time.perf_counter() - begin
        if at != self._case.size:
            raise NetError(f"{at} bytes were read of {self._case.size}")
        self._programs.leave(0)
        return first_s, seconds


def measure(case: Case, runs: int, workers: int, command: str, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: this machine cannot do it, or a run went wrong.
    """
    end_in_order()
    check_space(case.size, case.nodes + 1)
    result: dict[str, Any] = {"bench": "stream", **machine(), "command": command}
    plain, first, last = list[float](), list[float](), list[float]()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="shoal-stream-", dir=TMPFS) as folder,
            laid(case, Path(folder)) as (lab, _),
            ExitStack() as stack,
        ):
            programs = Programs(lab, 30.0, workers)
            stack.callback(programs.close)
            programs.start()
            turns = Turns(programs)
            for number in range(1, case.nodes):
                turns.whole(number)
            for _ in range(runs):
                plain.append(turns.plain())
                first_s, last_s = turns.read()
                first.append(first_s)
                last.append(last_s)
    except NetError as error:
        raise SystemExit(str(error)) from error
    result |= {"plain_s": plain, "first_s": first, "read_s": last}
    table = Table("", "median s", "all s")
    rows = (("plain join", plain), ("read to the end", last), ("first byte", first))
    for name, taken in rows:
        median, each = statistics.median(taken), ", ".join(f"{one:.3f}" for one in taken)
        table.add_row(name, f"{median:.3f}", each)
    console.print(table)
    ratio = statistics.median(last) / statistics.median(plain)
    console.print(
        f"read / plain {ratio:.3f}; {case.nodes} nodes, {case.mbit:g} Mbit/s, "
        f"{format_size(case.size)} in chunks of {format_size(case.chunk_bytes)}"
    )
    show_machine(result)
    write_json(result, json_file)
