"""Reading a model that is here: Python beside os.pread, the mount beside a bare one of pyfuse3.

Python: every byte goes through xxh3 on both sides, 1 MiB at a time, from tmpfs. The mounts: the
page cache is emptied before each reading, so that the kernel asks for every byte; `dd` reads in
order, and a populated mapping is what llama.cpp makes.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import xxhash
from rich.table import Table

from node.mount.prepare import unmount
from node.reader import Model, open_model
from p2p.units import MIB
from simulations.bench.bare_mount import NAME
from simulations.bench.peer import node_command
from simulations.bench.processes import (
    GB,
    TMPFS,
    check_space,
    console,
    end_in_order,
    machine,
    read_size,
    show_machine,
    started,
    tracker,
    wait_for,
    write_json,
    write_random,
)  # fmt: skip

FILE = NAME.decode()
PIECE = MIB
STOP_S = 10.0

# the mapping's own time, as the program that waits for it sees it
POPULATE = """
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
begin = time.perf_counter()
mmap.mmap(file, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
print(time.perf_counter() - begin)
"""


def by_pread(path: Path) -> int:
    """The plain file; returns a digest of all."""
    digest, file = xxhash.xxh3_64(), os.open(path, os.O_RDONLY)
    at, size = 0, os.fstat(file).st_size
    while at < size:
        data = os.pread(file, PIECE, at)
        digest.update(data)
        at += len(data)
    os.close(file)
    return digest.intdigest()


def by_readinto(model: Model) -> int:
    """A stream into one buffer."""
    digest, buffer = xxhash.xxh3_64(), bytearray(PIECE)
    with model.open(FILE) as stream, memoryview(buffer) as view:
        while count := stream.readinto(view):
            digest.update(view[:count])
    return digest.intdigest()


def by_view(model: Model) -> int:
    """`Model.read`: no copy."""
    digest, size = xxhash.xxh3_64(), model.size(FILE)
    for at in range(0, size, PIECE):
        digest.update(model.read(FILE, at, PIECE))
    return digest.intdigest()


def timed_digest(read: Callable[[], int], wanted: int) -> float:
    """Seconds.

    Raises:
      SystemExit: what was read is not the file.
    """
    begin = time.perf_counter()
    digest = read()
    seconds = time.perf_counter() - begin
    if digest != wanted:
        raise SystemExit("what was read is not what was written")
    return seconds


def forget(path: Path) -> None:
    """Empty the page cache of a file in a mount."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def by_dd(path: Path) -> float:
    """Seconds of dd."""
    forget(path)
    begin = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
    return time.perf_counter() - begin


def by_populate(path: Path) -> float:
    """Seconds of a populated mapping."""
    forget(path)
    done = subprocess.run(
        [sys.executable, "-c", POPULATE, str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@contextmanager
def mounted(command: list[str], directory: Path) -> Iterator[None]:
    """A program that has a mount, which goes with it."""
    with started(command, subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "mounted\n":
                raise SystemExit(f"nothing was mounted at {directory}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                unmount(directory)


@contextmanager
def node(folder: Path, address: str, size: int) -> Iterator[Path]:
    """A node that has everything and a mount; gives its reader socket."""
    report = folder / "node" / "report.json"
    command = [*node_command(address, folder / "source" / FILE, folder / "node", None),
               "--mount", str(folder / "ours"), "--log-level", "error"]  # fmt: skip
    with started(command, subprocess.DEVNULL) as process:
        try:
            wait_for(report, process, size)
            yield folder / "node" / ".model.shoal" / "reader.sock"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                unmount(folder / "ours")


def rounds(folder: Path, model: Model, runs: int, size: int) -> dict[str, list[float]]:
    """GB/s of each way, by round; each round takes all ways, one after the other."""
    source, ours, bare = (folder / name / FILE for name in ("source", "ours", "bare"))
    wanted = by_pread(source)
    ways: dict[str, Callable[[], float]] = {
        "os.pread": lambda: timed_digest(lambda: by_pread(source), wanted),
        "readinto": lambda: timed_digest(lambda: by_readinto(model), wanted),
        "read (a view)": lambda: timed_digest(lambda: by_view(model), wanted),
        "dd, bare": lambda: by_dd(bare),
        "dd, ours": lambda: by_dd(ours),
        "populated, bare": lambda: by_populate(bare),
        "populated, ours": lambda: by_populate(ours),
    }
    for way in ways.values():
        way()  # warm: the first touch of a page is the machine's cost
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs):
        names = list(ways)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(size / ways[name]() / GB)
    return found


PAIRS = {"readinto": "os.pread", "read (a view)": "os.pread", "dd, ours": "dd, bare",
         "populated, ours": "populated, bare"}  # fmt: skip


def measure(size_text: str, runs: int, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named."""
    size = read_size(size_text)
    check_space(size, 3)
    end_in_order()
    where = machine()
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS))
        )
        for name in ("source", "node", "bare"):
            (folder / name).mkdir()
        write_random(folder / "source" / FILE, size)
        _, address = stack.enter_context(tracker())
        socket = stack.enter_context(node(folder, address, size))
        bare = [sys.executable, "-m", "simulations.bench.bare_mount", str(folder / "bare")]
        stack.enter_context(mounted([*bare, str(size)], folder / "bare"))
        model = stack.enter_context(open_model(socket=socket))
        found = rounds(folder, model, runs, size)
    ratios = {
        name: [one / other for one, other in zip(found[name], found[base], strict=True)]
        for name, base in PAIRS.items()
    }
    table = Table("way", "GB/s", "beside", "ratio")
    for name, rates in found.items():
        beside = PAIRS.get(name, "")
        ratio = f"{statistics.median(ratios[name]):.2f}" if beside else ""
        table.add_row(name, f"{statistics.median(rates):.2f}", beside, ratio)
    console.print(table)
    result: dict[str, Any] = {
        "bench": "read", "size_bytes": size, "gb_per_s": found, "ratios": ratios, **where,
        "command": f"python -m simulations bench read --size {size_text} --runs {runs}",
    }  # fmt: skip
    console.print(f"medians of {runs} rounds, all in tmpfs; Python's ways hash every byte (xxh3)")
    show_machine(result)
    write_json(result, json_file)
