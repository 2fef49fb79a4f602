"""One node reads a file from an origin, beside the programs that people use for that today.

In each round every program reads the same random bytes from the same nginx on loopback, tmpfs to
tmpfs, into a fresh folder; every byte is compared afterwards. The first round is not counted: a
virtual machine's first touch of its memory is slow, and from then on all use the same pages.

CPU time is `os.wait4`'s: of the process and of all children that it waited for, so a node's workers
are in it (which `with_report` checks against the node's own report). Seconds are of the
whole process: of a node, Python's start, the tracker's answers and its orderly end are in them.
Machines differ in speed from minute to minute, so ratios are of runs in the same round.

On loopback, the kernel does a part of the sender's work in whoever reads and acknowledges, or
leaves it to nginx, depending on how a program reads. So nginx's CPU time is shown beside each
program's.
"""

import json
import os
import platform
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from p2p.errors import UsageError
from p2p.units import MIB, format_size, parse_size
from simulations.nginx import Nginx, serving

console = Console()

BUCKET, KEY = "bucket", "model.bin"
TMPFS = Path("/dev/shm")
GB = 1e9
STEP = 8 * MIB
OURS = "p2p-node"
# nothing of the caller's environment: neither proxies nor keys nor settings of a home directory
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
START_S, SLOWEST_BYTES_S = 30.0, 20e6  # a run that is slower hangs

Command = Callable[[str, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Run:
    """One program, one round. The last three are the node's report's: its own start to its end."""

    seconds: float
    user_s: float
    system_s: float
    nginx_s: float = 0.0
    own_s: float | None = None
    report_cpu_s: float | None = None
    report_worker_cpu_s: float | None = None

    @property
    def cpu_s(self) -> float:
        """User and system time."""
        return self.user_s + self.system_s


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


# -- processes ------------------------------------------------------------------------------------


@contextmanager
def started(command: list[str], stdout: int) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which ends with the block."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=stdout, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.stdout is not None:
            process.stdout.close()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def tracker() -> Iterator[str]:
    """A tracker of its own for one run, which is not counted; gives its address."""
    command = [sys.executable, "-m", "tracker", "serve", "--listen", "127.0.0.1:0", "--http", "off"]
    with started(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if readable else ""
        if not line.startswith("tracker: nodes at "):
            raise SystemExit("the tracker did not start")
        yield line.split()[3].rstrip(",")


def timed(name: str, command: list[str], size: int) -> Run:
    """Run a program to its end.

    Raises:
      SystemExit: it fails or hangs.
    """
    begin = time.perf_counter()
    with started(command, subprocess.DEVNULL) as process:
        limit_s = START_S + size / SLOWEST_BYTES_S
        descriptor = os.pidfd_open(process.pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], limit_s)
        finally:
            os.close(descriptor)
        seconds = time.perf_counter() - begin
        if not ended:
            raise SystemExit(f"{name} has not ended after {limit_s:.0f} s")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed with exit code {process.returncode}: {command}")
    return Run(seconds, usage.ru_utime, usage.ru_stime)


def with_report(run: Run, report: dict[str, Any]) -> Run:
    """The same run with the report's figures, once the two accounts of CPU time agree.

    Raises:
      SystemExit: wait4 knows less than the report, so a worker was not waited for.
    """
    if run.cpu_s < report["cpu_seconds"] - 0.05:
        raise SystemExit(
            f"CPU seconds: {run.cpu_s:.2f} by wait4, {report['cpu_seconds']:.2f} by the report"
        )
    return replace(
        run, own_s=report["seconds"], report_cpu_s=report["cpu_seconds"],
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
        self._load = os.getloadavg()[0]
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
        with self._source.open("wb") as stream:
            for at in range(0, self._size, STEP):
                stream.write(os.urandom(min(STEP, self._size - at)))

    def round(self, nginx: Nginx, counted: bool) -> None:
        """Each program once."""
        for name in self.runs:
            to = self._folder / "copy"
            to.mkdir()
            before = nginx.cpu_s()
            try:
                run = self._one(name, nginx.url, to)
            finally:
                shutil.rmtree(to)
            run = replace(run, nginx_s=nginx.cpu_s() - before)
            if counted:
                self.runs[name].append(run)
            per_gb = self._size / GB
            console.print(
                f"{'run' if counted else 'warm-up'}: {name} {run.cpu_s / per_gb:.3f} CPU s/GB, "
                f"{per_gb / run.seconds:.2f} GB/s"
            )

    def _one(self, name: str, url: str, to: Path) -> Run:
        if name == OURS:
            with tracker() as address:
                run = timed(name, node_command(address, self._workers, url, to), self._size)
            run = with_report(run, json.loads((to / "report.json").read_text()))
            self._compare(name, to / "model" / KEY)
        else:
            run = timed(name, self._peers[name](url, to), self._size)
            self._compare(name, to / KEY)
        return run

    def _compare(self, name: str, copy: Path) -> None:
        """Every byte.

        Raises:
          SystemExit: one differs.
        """
        with self._source.open("rb") as one, copy.open("rb") as other:
            while True:
                data = one.read(STEP)
                if data != other.read(STEP):
                    raise SystemExit(f"{name}: the copy differs from the source")
                if not data:
                    return

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
            "bench": "fetch", "size_bytes": self._size, "machine": platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(),
            "kernel": platform.release(), "load": self._load, "command": command,
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
        _show_ratio("CPU per GB, ours to curl", result["cpu_to_curl"])
        _show_ratio("GB/s, ours to aria2c", result["speed_to_aria2c"])
        reported = statistics.median(run.report_cpu_s or 0.0 for run in self.runs[OURS])
        waited = statistics.median(run.cpu_s for run in self.runs[OURS])
        console.print(f"our CPU seconds: {waited:.2f} by wait4, {reported:.2f} by the report")
        console.print(
            f"{result['machine']}, {result['cores']} cores, python {result['python']}, "
            f"Linux {result['kernel']}, load {result['load']:.1f} before the first round; "
            f"repeat: {result['command']}", soft_wrap=True,
        )  # fmt: skip


def _show_ratio(text: str, ratios: list[float]) -> None:
    if ratios:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        console.print(f"{text}: {statistics.median(ratios):.2f} (by round: {rounds})")


# -- the command ----------------------------------------------------------------------------------


def check_space(size: int) -> None:
    """The source and one copy must fit, into tmpfs and into memory.

    Raises:
      SystemExit: they do not.
    """
    if not os.access(TMPFS, os.W_OK):
        raise SystemExit(f"{TMPFS} cannot be written: this bench needs tmpfs there")
    meminfo = Path("/proc/meminfo").read_text()
    memory = int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    there = min(shutil.disk_usage(TMPFS).free, memory)
    if there < 2 * size + 256 * MIB:
        raise SystemExit(
            f"{TMPFS} must hold the file twice, {format_size(2 * size)}, and has "
            f"{format_size(there)}: give a smaller --size"
        )


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def measure(size_text: str, runs: int, workers: int | None, json_file: Path | None) -> None:
    """Print the figures, and write them if a file is named.

    Raises:
      SystemExit: something is missing, or a program failed.
    """
    try:
        size = parse_size(size_text)
    except UsageError as error:
        raise SystemExit(str(error)) from error
    check_space(size)
    signal.signal(signal.SIGTERM, _terminated)  # so that the folders and processes go, too
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
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
