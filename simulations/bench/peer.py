"""One node reads a model from another node, beside curl that reads the same file from nginx.

Two real `p2p-node join` and a real tracker on loopback, tmpfs to tmpfs. The seeder holds the model
before the first round and stays; in each round a new node takes all of it from the seeder (the
report must say: nothing from the origin) and verifies every byte, then curl reads the same bytes
from nginx. Every copy is compared afterwards; the first round is not counted.

CPU time is of both sides: of the reading program all of it (`os.wait4`, workers included), of the
serving one what it used between the start and the end of the reading one. On loopback the kernel
does a part of the sender's work in the receiver, so that one side alone says little.

What a program costs that reads 64 KiB in the same round is its start-up: Python's imports, the
tracker's answers, the orderly end. It does not grow with the size, so a model of 100 GB does not
feel it, and CPU *per GB* is fair without it: both are shown, for curl likewise.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from p2p.units import KIB, format_size
from simulations.bench.fetch import peers as programs
from simulations.bench.processes import (
    GB,
    TMPFS,
    Usage,
    check_space,
    compare,
    console,
    cpu_s,
    end_in_order,
    machine,
    read_size,
    show_machine,
    show_ratio,
    started,
    timed,
    tracker,
    wait_for,
    write_json,
    write_random,
)
from simulations.memory import held_ready
from simulations.nginx import Nginx, serving

BUCKET, KEY, SMALL_KEY = "bucket", "model.bin", "small.bin"  # curl's bucket in `fetch`
SMALL_BYTES = 64 * KIB
OURS, CURL = "p2p-node", "curl"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One file from a serving program to a reading one. `start_s`: CPU seconds of 64 KiB."""

    reader: Usage
    server_s: float
    start_s: float
    own_s: float | None = None
    """of a node, from its joining to its completion"""

    @property
    def whole_s(self) -> float:
        """CPU seconds of both sides."""
        return self.reader.cpu_s + self.server_s

    @property
    def moved_s(self) -> float:
        """The same without the reader's start-up."""
        return self.whole_s - self.start_s


# -- nodes ----------------------------------------------------------------------------------------


def node_command(address: str, source: Path, to: Path, workers: int | None) -> list[str]:
    """A node that takes a model from its swarm; the report goes beside the folder of the model.

    A node has one data connection with a peer, or one for each address that the other advertises:
    with an address for each worker, every worker has a connection.
    """
    more = [] if workers is None else ["--workers", str(workers)]
    for number in range(workers or 1):
        more += ["--listen", f"127.0.0.{number + 1}:0"]
    return [sys.executable, "-m", "node", "join", "--tracker", address,
            "--origin", source.as_uri(), "--model-dir", str(to / "model"),
            "--report", str(to / "report.json"), "--quiet", *more]  # fmt: skip


@contextmanager
def seeder(address: str, source: Path, to: Path, workers: int | None, size: int) -> Iterator[int]:
    """A node that holds the whole model, and serves; gives its process id."""
    report = to / "report.json"
    report.unlink(missing_ok=True)
    with started(node_command(address, source, to, workers), subprocess.DEVNULL) as process:
        wait_for(report, process, size)
        yield process.pid


def download(
    address: str, source: Path, to: Path, workers: int | None, pid: int
) -> tuple[Usage, float, float]:
    """One node takes the model from the seeder `pid`.

    Returns:
      The node's usage, the seeder's CPU seconds meanwhile, seconds from joining to completion.

    Raises:
      SystemExit: a byte is wrong, or came from elsewhere.
    """
    command = [*node_command(address, source, to, workers), "--until-complete", "--linger", "0"]
    size = source.stat().st_size
    with held_ready(to, size):
        before = cpu_s(pid)
        usage = timed(OURS, command, size)
        served_s = cpu_s(pid) - before
    report: dict[str, Any] = json.loads((to / "report.json").read_text())
    if report["origin_bytes"] or report["peer_bytes"] != size:
        raise SystemExit(f"not everything came from the seeder: {report}")
    compare(OURS, source, to / "model" / source.name)
    return usage, served_s, report["seconds"]


# -- one comparison -------------------------------------------------------------------------------


class Comparison:
    """Node to node and nginx to curl in one temporary folder.

    Args:
      workers: of both nodes; None: their default.
    """

    def __init__(self, folder: Path, size: int, workers: int | None) -> None:
        self._folder = folder
        self._size = size
        self._workers = workers
        self._machine = machine()
        self.origin = folder / "origin"
        self._sources = [self.origin / BUCKET / key for key in (KEY, SMALL_KEY)]
        self._seeders: list[int] = []
        self._address = ""
        self.runs: dict[str, list[Transfer]] = {OURS: [], CURL: []}
        curl = programs()[CURL]
        if curl is None:
            raise SystemExit("curl is not installed: it is what this bench compares with")
        self._curl = curl

    def write_source(self) -> None:
        """The model, and the small one that shows what a start costs."""
        (self.origin / BUCKET).mkdir(parents=True)
        for path in (self._folder, self.origin, self.origin / BUCKET):
            path.chmod(0o755)
        for source, size in zip(self._sources, (self._size, SMALL_BYTES), strict=True):
            write_random(source, size)

    def start(self, stack: ExitStack) -> None:
        """A tracker, and a seeder of each model."""
        _, self._address = stack.enter_context(tracker())
        for source in self._sources:
            to = self._folder / f"seeder-{source.stem}"
            to.mkdir()
            node = seeder(self._address, source, to, self._workers, self._size)
            self._seeders.append(stack.enter_context(node))

    def round(self, nginx: Nginx, counted: bool) -> None:
        """Each pair once."""
        for name, one in ((OURS, self._node), (CURL, lambda: self._nginx(nginx))):
            run = one()
            if counted:
                self.runs[name].append(run)
            per_gb = self._size / GB
            console.print(
                f"{'run' if counted else 'warm-up'}: {name} {run.reader.cpu_s / per_gb:.3f} + "
                f"{run.server_s / per_gb:.3f} CPU s/GB (start {run.start_s:.2f} s), "
                f"{per_gb / run.reader.seconds:.2f} GB/s"
            )

    @contextmanager
    def _copy(self) -> Iterator[Path]:
        to = self._folder / "copy"
        to.mkdir()
        try:
            yield to
        finally:
            shutil.rmtree(to)

    def _node(self) -> Transfer:
        found = []
        for source, pid in zip(self._sources, self._seeders, strict=True):
            with self._copy() as to:
                found.append(download(self._address, source, to, self._workers, pid))
        (usage, served_s, own_s), (small, _, _) = found
        return Transfer(usage, served_s, small.cpu_s, own_s)

    def _nginx(self, nginx: Nginx) -> Transfer:
        found = []
        for source in self._sources:
            with self._copy() as to:
                url = f"{nginx.url}/{BUCKET}/{source.name}"
                command = [*self._curl(nginx.url, to)[:-1], url]
                with held_ready(to, source.stat().st_size):
                    before = nginx.cpu_s()
                    usage = timed(CURL, command, self._size)
                    found.append((usage, nginx.cpu_s() - before))
                compare(CURL, source, to / KEY)
        (usage, served_s), (small, _) = found
        return Transfer(usage, served_s, small.cpu_s)

    # -- figures ----------------------------------------------------------------------------------

    def figures(self, name: str) -> dict[str, Any]:
        """Medians of a pair, and all its runs."""
        runs, size = self.runs[name], self._size / GB

        def median(values: list[float]) -> float:
            return statistics.median(values)

        return {
            "reader_s_per_gb": median([run.reader.cpu_s / size for run in runs]),
            "server_s_per_gb": median([run.server_s / size for run in runs]),
            "both_s_per_gb": median([run.whole_s / size for run in runs]),
            "start_s": median([run.start_s for run in runs]),
            "moved_s_per_gb": median([run.moved_s / size for run in runs]),
            "gb_per_s": median([size / run.reader.seconds for run in runs]),
            "own_gb_per_s": median([size / (run.own_s or run.reader.seconds) for run in runs]),
            "runs": [asdict(run) for run in runs],
        }

    def result(self, command: str) -> dict[str, Any]:
        """Everything, as it is written to a file."""
        pairs = list(zip(self.runs[OURS], self.runs[CURL], strict=True))
        return {
            "bench": "peer", "size_bytes": self._size, **self._machine, "command": command,
            "pairs": {name: self.figures(name) for name in self.runs},
            "cpu_to_curl": [ours.moved_s / curl.moved_s for ours, curl in pairs],
            "cpu_to_curl_with_start": [ours.whole_s / curl.whole_s for ours, curl in pairs],
            "speed_to_curl": [curl.reader.seconds / ours.reader.seconds for ours, curl in pairs],
        }  # fmt: skip

    def show(self, result: dict[str, Any]) -> None:
        """The table, the ratios, the machine."""
        table = Table("", "reader", "server", "both", "no start", "start s", "GB/s", "own GB/s")
        names = {OURS: "node, node", CURL: "curl, nginx"}
        for name, figures in result["pairs"].items():
            table.add_row(
                names[name], f"{figures['reader_s_per_gb']:.3f}",
                f"{figures['server_s_per_gb']:.3f}", f"{figures['both_s_per_gb']:.3f}",
                f"{figures['moved_s_per_gb']:.3f}", f"{figures['start_s']:.2f}",
                f"{figures['gb_per_s']:.2f}", f"{figures['own_gb_per_s']:.2f}",
            )  # fmt: skip
        console.print(table)
        rounds = len(self.runs[OURS])
        console.print(
            f"CPU s/GB of {format_size(self._size)}, medians of {rounds} rounds after a warm-up"
        )
        show_ratio("CPU per GB of both sides, ours to curl's, without start-up",
                   result["cpu_to_curl"])  # fmt: skip
        show_ratio("the same of whole processes", result["cpu_to_curl_with_start"])
        show_ratio("speed of whole processes, ours to curl's", result["speed_to_curl"])
        show_machine(result)


# -- the command ----------------------------------------------------------------------------------


def measure(size_text: str, runs: int, workers: int | None, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: something is missing, or a program failed.
    """
    size = read_size(size_text)
    check_space(size, copies=3)
    end_in_order()
    words = ["python -m simulations bench peer", f"--size {size_text}", f"--runs {runs}"]
    if workers is not None:
        words.append(f"--workers {workers}")
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS)
        comparison = Comparison(Path(stack.enter_context(folder)), size, workers)
        comparison.write_source()
        work = comparison.origin.parent / "nginx"
        work.mkdir()
        nginx = stack.enter_context(serving(comparison.origin, work))
        comparison.start(stack)
        for number in range(runs + 1):
            comparison.round(nginx, counted=number > 0)
        result = comparison.result(" ".join(words))
    comparison.show(result)
    write_json(result, json_file)
