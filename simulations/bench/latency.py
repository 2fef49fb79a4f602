"""How long a random read waits that finds nothing here: from the origin, and from a peer.

Namespaces as in `simulations.netlab`, every link shaped; the origin takes a while to the first byte
(`simulations.late_origin`). In one run:

    GET          ranges of the unloaded origin, on a connection that is open already
    cold         reads through `node.open_model` of chunks that no node has, while all nodes of the
                 swarm load the model
    from a peer  the same at a node that joins when the others hold everything, and loads it all

What is read is looked up in the nodes' state maps right before, and compared with the source after.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from subprocess import Popen
from typing import Any

from rich.table import Table

from node.reader import Model, open_model
from node.statemap import VERIFIED, StateMap
from p2p.units import KIB, MIB, format_size
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
from simulations.netlab import MODEL, ORIGIN_IP, TRACKER, Netlab, laid, says, wait_for
from simulations.netns import NetError

LENGTHS = (4 * KIB, MIB)
GETS = 60
PAUSE_S = 0.03  # between two reads: a reader that never computes leaves prefetch no time
FULL = 0.9  # of the model here: what comes then is the tail, no load
FILE = "model.bin"
PORT = "80"


class Programs:
    """The programs of one run."""

    def __init__(self, lab: Netlab, delay_ms: float, workers: int) -> None:
        self.lab, self.case = lab, lab.case
        self._delay_ms, self._workers = delay_ms, workers
        self.nodes: dict[int, Popen[bytes]] = {}
        self._source = (lab.folder / "origin" / MODEL / FILE).open("rb")

    def start(self) -> None:
        """Origin and tracker."""
        log = self.lab.folder / "origin.log"
        root = str(self.lab.folder / "origin")
        self.lab.python(
            self.lab.origin, log, "-m", "simulations.late_origin", root, ORIGIN_IP, PORT,
            str(self._delay_ms),
        )  # fmt: skip
        wait_for(partial(says, log, "ready"), "the origin", log=log)
        self.lab.start_tracker()

    def join(self, number: int, *options: str) -> Path:
        """Start a node; its cache dir."""
        cache = self.lab.folder / f"n{number}"
        self.nodes[number] = self.lab.python(
            self.lab.hosts[number], self.lab.folder / f"n{number}.log", "-m", "node", "join",
            "--tracker", TRACKER, "--origin", f"http://{ORIGIN_IP}/{MODEL}/", "--cache-dir",
            str(cache), "--listen", f"{self.lab.ips[number]}:7071", "--quiet", "--log-level",
            "info", "--chunk-size", str(self.case.chunk_bytes), "--block-size",
            str(self.case.block_bytes), "--workers", str(self._workers), *options,
        )  # fmt: skip
        wait_for(lambda: (cache / "reader.sock").exists(), f"n{number}")
        return cache

    def leave(self, number: int) -> None:
        """End a node, and forget what it had."""
        process = self.nodes.pop(number)
        process.terminate()
        process.wait(30)
        shutil.rmtree(self.lab.folder / f"n{number}")

    def gets(self, length: int, seed: int) -> list[float]:
        """Seconds of GETs from the first node's host."""
        numbers = map(str, (self.case.size, length, GETS, seed))
        out = self.lab.hosts[0].sh(
            sys.executable, "-m", "simulations.getter", ORIGIN_IP, PORT, f"/{MODEL}/{FILE}",
            *numbers,
        )  # fmt: skip
        took: list[float] = json.loads(out)
        return took

    def check(self, offset: int, data: bytes) -> None:
        """Raises NetError: these are not the source's bytes."""
        self._source.seek(offset)
        if self._source.read(len(data)) != data:
            raise NetError(f"wrong bytes at {offset}")

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()


def _has_map(cache: Path) -> bool:
    return any(cache.glob("*/state"))


@contextmanager
def maps(caches: list[Path]) -> Iterator[list[StateMap]]:
    """The state maps of nodes that know their model."""
    opened = []
    for cache in caches:
        wait_for(partial(_has_map, cache), f"the map of {cache.name}")
        opened.append(StateMap(next(cache.glob("*/state"))))
    yield opened
    for one in opened:
        one.close()


class Reads:
    """Random reads of chunks in a wanted state."""

    def __init__(
        self, programs: Programs, model: Model, states: list[StateMap], rng: Random
    ) -> None:
        self._programs, self._model, self._states, self._rng = programs, model, states, rng
        self._blocks = programs.case.chunk_bytes // programs.case.block_bytes

    def held(self, node: int, chunk: int) -> int:
        """Blocks of a chunk at a node."""
        return self._states[node].blocks(chunk, 0, self._blocks).count(VERIFIED)

    def share(self) -> float:
        """How much of the model the reader's node has."""
        there = self._model.progress()
        return there.here_bytes / there.total_bytes

    def run(self, wanted: Callable[[int], bool]) -> dict[int, list[float]]:
        """Read until the load is over; seconds by length."""
        case, found = self._programs.case, {length: list[float]() for length in LENGTHS}
        turn = 0
        while (share := self.share()) < FULL:
            if share < 0.02:
                time.sleep(PAUSE_S)
                continue
            length = LENGTHS[turn % len(LENGTHS)]
            chunk = self._pick(wanted, length)
            if chunk is None:
                break
            inside = self._rng.randrange(max(1, case.chunk_bytes - length))
            offset = chunk * case.chunk_bytes + inside
            begin = time.perf_counter()
            data = bytes(self._model.read(FILE, offset, length))
            found[length].append(time.perf_counter() - begin)
            self._programs.check(offset, data)
            turn += 1
            time.sleep(PAUSE_S)
        return found

    def _pick(self, wanted: Callable[[int], bool], length: int) -> int | None:
        span = -(-length // self._programs.case.chunk_bytes)
        last = self._programs.case.size // self._programs.case.chunk_bytes - span
        for _ in range(2000):
            chunk = self._rng.randrange(last)
            if all(wanted(one) for one in range(chunk, chunk + span + 1)):
                return chunk
        return None


def measure(
    case: Case, delay_ms: float, workers: int, seed: int, command: str, json_file: Path | None
) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: this machine cannot do it, or a run went wrong.
    """
    end_in_order()
    check_space(case.size, case.nodes + 1)
    result: dict[str, Any] = {"bench": "latency", **machine(), "command": command, "seed": seed}
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-latency-", dir=TMPFS) as folder:
            taken = _run(case, delay_ms, workers, seed, Path(folder))
    except NetError as error:
        raise SystemExit(str(error)) from error
    _show(case, delay_ms, taken, result)
    show_machine(result)
    write_json(result, json_file)


def _run(
    case: Case, delay_ms: float, workers: int, seed: int, folder: Path
) -> dict[str, dict[int, list[float]]]:
    rng = Random(seed)
    with laid(case, folder) as (lab, _), ExitStack() as stack:
        programs = Programs(lab, delay_ms, workers)
        stack.callback(programs.close)
        programs.start()
        gets = {length: programs.gets(length, seed) for length in LENGTHS}
        others = range(1, case.nodes - 1)
        caches = [programs.join(number) for number in (0, *others)]
        states = stack.enter_context(maps(caches))
        model = stack.enter_context(open_model(socket=caches[0] / "reader.sock", timeout_s=30))
        reads = Reads(programs, model, states, rng)
        everyone = range(len(states))
        cold = reads.run(lambda chunk: not any(reads.held(node, chunk) for node in everyone))
        blocks = case.size // case.block_bytes

        def complete() -> bool:
            return all(one.find_missing(0, blocks) < 0 for one in states[1:])

        wait_for(complete, "the end of the load", limit_s=120)
        last = programs.join(case.nodes - 1)
        newest = stack.enter_context(maps([last]))
        second = stack.enter_context(open_model(socket=last / "reader.sock", timeout_s=30))
        late = Reads(programs, second, newest, rng)
        warm = late.run(lambda chunk: not late.held(0, chunk))
    return {"GET": gets, "cold": cold, "from a peer": warm}


def _show(
    case: Case,
    delay_ms: float,
    taken: dict[str, dict[int, list[float]]],
    result: dict[str, Any],
) -> None:
    table = Table("", "bytes", "reads", "p50 ms", "p99 ms", "p50 / GET", "p99 / GET")
    rows = []
    for name, by_length in taken.items():
        for length, seconds in by_length.items():
            if len(seconds) < 2:
                table.add_row(name, format_size(length), str(len(seconds)))
                continue
            cut, base = _percentiles(seconds), _percentiles(taken["GET"][length])
            rows.append({"what": name, "bytes": length, "count": len(seconds), "p50_s": cut[0],
                         "p99_s": cut[1], "p50_ratio": cut[0] / base[0],
                         "p99_ratio": cut[1] / base[1], "seconds": seconds})  # fmt: skip
            table.add_row(
                name, format_size(length), str(len(seconds)), f"{cut[0] * 1000:.1f}",
                f"{cut[1] * 1000:.1f}", f"{cut[0] / base[0]:.2f}", f"{cut[1] / base[1]:.2f}",
            )  # fmt: skip
    console.print(table)
    console.print(
        f"{case.nodes} nodes, {case.mbit:g} Mbit/s, {delay_ms:g} ms to the first byte, "
        f"{format_size(case.size)} in chunks of {format_size(case.chunk_bytes)} and blocks of "
        f"{format_size(case.block_bytes)}"
    )
    result["rows"] = rows


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98]
