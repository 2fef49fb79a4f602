"""One node reads a file from an origin, beside the programs that people use for that today.

In each round every program reads the same random bytes from the same nginx on loopback, tmpfs to
tmpfs, into a fresh folder; every byte is compared afterwards. The first round is not counted, and
the memory for the copy is held ready (`simulations.memory`).

CPU time is `os.wait4`'s: of the process and of all children that it waited for, so a node's workers
are in it (which `with_report` checks against the node's own report). Seconds are of the
whole process: of a node, Python's start, the tracker's answers and its orderly end are in them.
Machines differ in speed from minute to minute, so ratios are of runs in the same round.

On loopback, the kernel does a part of the sender's work in whoever reads and acknowledges, or
leaves it to nginx, depending on how a program reads. So nginx's CPU time is shown beside each
program's.
"""

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from p2p.units import format_size
from simulations.bench.processes import (
    GB,
    TMPFS,
    Usage,
    check_space,
    compare,
    console,
    end_in_order,
    machine,
    read_size,
    show_machine,
    show_ratio,
    timed,
    tracker,
    write_json,
    write_random,
)
from simulations.memory import held_ready
from simulations.nginx import Nginx, serving

BUCKET, KEY = "bucket", "model.bin"
OURS = "p2p-node"

Command = Callable[[str, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Run(Usage):
    """One program, one round. The last three are the node's report's: its own start to its end."""

    nginx_s: float = 0.0
    own_s: float | None = None
    report_cpu_s: float | None = None
    report_worker_cpu_s: float | None = None


# -- the programs ---------------------------------------------------------------------------------


def peers() -> dict[str, Command | None]:
    """The programs beside ours, by name; None is one that is not installed."""
    bucket = f"s3://{BUCKET}/{KEY}"

    def curl(program: str, url: str, to: Path) -> list[str]:
        return [program, "-s", "-o", str(to / KEY), f"{url}/{BUCKET}/{KEY}"]

    def aria2c(program: str, url: str, to: Path) -> list[str]:
        return [program, "-x16", "-s16", "-k8M", "--file-allocation=none", "-q",
                "-d", str(to), "-o", KEY, f"{url}/{BUCKET}/{KEY}"]  # fmt: skip

    def s5cmd(program: str, url: str, to: Path) -> list[str]:
        return [program, "--no-sign-request", "--endpoint-url", url, "--log", "error",
                "cp", "--source-region", "us-east-1", bucket, str(to / KEY)]  # fmt: skip

    def bound(name: str, build: Callable[[str, str, Path], list[str]]) -> Command | None:
        beside_python = str(Path(sys.executable).parent)
        program = shutil.which(name, path=beside_python) or shutil.which(name)
        return None if program is None else lambda url, to: build(program, url, to)

    return {"curl": bound("curl", curl), "aria2c": bound("aria2c", aria2c),
            "s5cmd": bound("s5cmd", s5cmd)}  # fmt: skip


def node_command(tracker: str, workers: int | None, url: str, to: Path) -> list[str]:
    """Our own program; its report goes beside the folder of the model."""
    more = [] if workers is None else ["--workers", str(workers)]
    return [sys.executable, "-m", "node", "join", "--tracker", tracker,
            "--origin", f"{url}/{BUCKET}/{KEY}", "--model-dir", str(to / "model"),
            "--report", str(to / "report.json"), "--until-complete", "--linger", "0", "--quiet",
            *more]  # fmt: skip


def with_report(run: Usage, report: dict[str, Any]) -> Run:
    """The same run with the report's figures, once the two accounts of CPU time agree.

    Raises:
      SystemExit: wait4 knows less than the report, so a worker was not waited for.
    """
    if run.cpu_s < report["cpu_seconds"] - 0.05:
        raise SystemExit(
            f"CPU seconds: {run.cpu_s:.2f} by wait4, {report['cpu_seconds']:.2f} by the report"
        )
    return Run(
        run.seconds, run.user_s, run.system_s, own_s=report["seconds"],
        report_cpu_s=report["cpu_seconds"],
        report_worker_cpu_s=report["worker_cpu_seconds"],
    )  # fmt: skip


# -- one comparison -------------------------------------------------------------------------------


class Comparison:
    """All programs in one temporary folder.

    Args:
      workers: of the node; None: its default.
    """

    def __init__(self, folder: Path, size: int, workers: int | None) -> None:
        self._folder = folder
        self._size = size
        self._workers = workers
        self._machine = machine()
        self._source = folder / "origin" / BUCKET / KEY
        commands = peers()
        self._peers = {name: command for name, command in commands.items() if command is not None}
        self.missing = [name for name, command in commands.items() if command is None]
        self.runs: dict[str, list[Run]] = {name: [] for name in (OURS, *self._peers)}

    @property
    def origin(self) -> Path:
        """The folder that is served."""
        return self._folder / "origin"

    def write_source(self) -> None:
        """Random bytes: nothing compresses them, and no page is like another."""
        self._source.parent.mkdir(parents=True)
        for path in (self._folder, self.origin, self._source.parent):
            path.chmod(0o755)
        write_random(self._source, self._size)

    def round(self, nginx: Nginx, counted: bool) -> None:
        """Each program once."""
        for name in self.runs:
            to = self._folder / "copy"
            to.mkdir()
            try:
                with held_ready(self._folder, self._size):
                    before = nginx.cpu_s()
                    run = self._one(name, nginx.url, to)
                    run = replace(run, nginx_s=nginx.cpu_s() - before)
            finally:
                shutil.rmtree(to)
            if counted:
                self.runs[name].append(run)
            per_gb = self._size / GB
            console.print(
                f"{'run' if counted else 'warm-up'}: {name} {run.cpu_s / per_gb:.3f} CPU s/GB, "
                f"{per_gb / run.seconds:.2f} GB/s"
            )

    def _one(self, name: str, url: str, to: Path) -> Run:
        if name == OURS:
            with tracker() as (_, address):
                usage = timed(name, node_command(address, self._workers, url, to), self._size)
            run = with_report(usage, json.loads((to / "report.json").read_text()))
            compare(name, self._source, to / "model" / KEY)
        else:
            run = Run(*astuple(timed(name, self._peers[name](url, to), self._size)))
            compare(name, self._source, to / KEY)
        return run

    # -- figures ----------------------------------------------------------------------------------

    def figures(self, name: str) -> dict[str, Any]:
        """Medians of a program, and all its runs."""
        runs, size = self.runs[name], self._size / GB
        own = [run.own_s for run in runs if run.own_s is not None]
        return {
            "cpu_s_per_gb": statistics.median(run.cpu_s / size for run in runs),
            "user_s_per_gb": statistics.median(run.user_s / size for run in runs),
            "system_s_per_gb": statistics.median(run.system_s / size for run in runs),
            "nginx_s_per_gb": statistics.median(run.nginx_s / size for run in runs),
            "gb_per_s": statistics.median(size / run.seconds for run in runs),
            "seconds": statistics.median(run.seconds for run in runs),
            "own_seconds": statistics.median(own) if own else None,
            "runs": [asdict(run) for run in runs],
        }

    def ratio(self, other: str, figure: Callable[[Run], float]) -> list[float]:
        """Ours to another program's, round by round; empty if it is missing."""
        pairs = zip(self.runs[OURS], self.runs.get(other, []), strict=False)
        return [figure(ours) / figure(theirs) for ours, theirs in pairs]

    def result(self, command: str) -> dict[str, Any]:
        """Everything, as it is written to a file."""
        return {
            "bench": "fetch", "size_bytes": self._size, **self._machine, "command": command,
            "missing": self.missing,
            "programs": {name: self.figures(name) for name in self.runs},
            "cpu_to_curl": self.ratio("curl", lambda run: run.cpu_s),
            "speed_to_aria2c": self.ratio("aria2c", lambda run: 1 / run.seconds),
        }  # fmt: skip

    def show(self, result: dict[str, Any]) -> None:
        """The table, the machine, the ratios."""
        table = Table("program", "CPU s/GB", "user", "system", "nginx's", "GB/s", "seconds", "own")
        for name, figures in result["programs"].items():
            own = figures["own_seconds"]
            table.add_row(
                name, f"{figures['cpu_s_per_gb']:.3f}", f"{figures['user_s_per_gb']:.3f}",
                f"{figures['system_s_per_gb']:.3f}", f"{figures['nginx_s_per_gb']:.3f}",
                f"{figures['gb_per_s']:.2f}", f"{figures['seconds']:.2f}",
                "" if own is None else f"{own:.2f}",
            )  # fmt: skip
        for name in self.missing:
            table.add_row(name, "not installed")
        console.print(table)
        rounds = len(self.runs[OURS])
        console.print(f"{format_size(self._size)}, medians of {rounds} rounds after a warm-up")
        show_ratio("CPU per GB, ours to curl", result["cpu_to_curl"])
        show_ratio("GB/s, ours to aria2c", result["speed_to_aria2c"])
        reported = statistics.median(run.report_cpu_s or 0.0 for run in self.runs[OURS])
        waited = statistics.median(run.cpu_s for run in self.runs[OURS])
        console.print(f"our CPU seconds: {waited:.2f} by wait4, {reported:.2f} by the report")
        show_machine(result)


# -- the command ----------------------------------------------------------------------------------


def measure(size_text: str, runs: int, workers: int | None, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: something is missing, or a program failed.
    """
    size = read_size(size_text)
    check_space(size)
    end_in_order()
    words = ["python -m simulations bench fetch", f"--size {size_text}", f"--runs {runs}"]
    if workers is not None:
        words.append(f"--workers {workers}")
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=TMPFS)
        comparison = Comparison(Path(stack.enter_context(folder)), size, workers)
        comparison.write_source()
        work = comparison.origin.parent / "nginx"
        work.mkdir()
        nginx = stack.enter_context(serving(comparison.origin, work))
        for number in range(runs + 1):
            comparison.round(nginx, counted=number > 0)
        result = comparison.result(" ".join(words))
    comparison.show(result)
    write_json(result, json_file)
