"""What the benches share: whole processes in their own groups, their CPU time, tmpfs, figures."""

import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from p2p.errors import UsageError
from p2p.units import MIB, format_size, parse_size
from simulations.memory import SPARE, room_bytes

console = Console()

TMPFS = Path("/dev/shm")
GB = 1e9
STEP = MIB  # stays in the processor's cache
# nothing of the caller's environment: neither proxies nor keys nor settings of a home directory
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
START_S, SLOWEST_BYTES_S = 30.0, 20e6  # a run that is slower hangs
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """A whole process, from its start to its end, with the children that it waited for."""

    seconds: float
    user_s: float
    system_s: float

    @property
    def cpu_s(self) -> float:
        """User and system time."""
        return self.user_s + self.system_s


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
def tracker(*options: str) -> Iterator[tuple[int, str]]:
    """A tracker of its own; gives its process id and address.

    Raises:
      SystemExit: it did not start.
    """
    command = [sys.executable, "-m", "tracker", "serve", "--listen", "127.0.0.1:0",
               "--http", "off", *options]  # fmt: skip
    with started(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if readable else ""
        if not line.startswith("tracker: nodes at "):
            raise SystemExit("the tracker did not start")
        yield process.pid, line.split()[3].rstrip(",")


def timed(name: str, command: list[str], size: int) -> Usage:
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
    return Usage(seconds, usage.ru_utime, usage.ru_stime)


def wait_for(path: Path, process: subprocess.Popen[str], size: int) -> None:
    """Wait until a process has written a file.

    Raises:
      SystemExit: it has ended, or does not come to it.
    """
    end = time.monotonic() + START_S + size / SLOWEST_BYTES_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{path.name} was not written: {process.args!r}")
        time.sleep(LOOK_S)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its descendants so far, to a clock tick (10 ms). What has ended
    counts as nothing."""
    ticks, pids = 0, [pid]
    while pids:
        one = pids.pop()
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            # of whichever of its threads started them
            for path in Path(f"/proc/{one}/task").glob("*/children"):
                pids += map(int, path.read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


# -- files ----------------------------------------------------------------------------------------


def write_random(path: Path, size: int) -> None:
    """Random bytes: nothing compresses them, and no page is like another."""
    with path.open("wb") as stream:
        for at in range(0, size, STEP):
            stream.write(os.urandom(min(STEP, size - at)))


def compare(name: str, source: Path, copy: Path) -> None:
    """Every byte.

    Raises:
      SystemExit: one differs.
    """
    with source.open("rb") as one, copy.open("rb") as other:
        while True:
            data = one.read(STEP)
            if data != other.read(STEP):
                raise SystemExit(f"{name}: the copy differs from the source")
            if not data:
                return


def read_size(text: str) -> int:
    """Bytes of a size as the command line has it.

    Raises:
      SystemExit: it is none.
    """
    try:
        return parse_size(text)
    except UsageError as error:
        raise SystemExit(str(error)) from error


def check_space(size: int, copies: int = 2) -> None:
    """So many copies of the file must fit, into tmpfs and into memory.

    Raises:
      SystemExit: they do not.
    """
    if not os.access(TMPFS, os.W_OK):
        raise SystemExit(f"{TMPFS} cannot be written: this bench needs tmpfs there")
    there = room_bytes(TMPFS)
    if there < copies * size + SPARE:
        raise SystemExit(
            f"{TMPFS} must hold the file {copies} times, {format_size(copies * size)}, and has "
            f"{format_size(there)}: give a smaller --size"
        )


def end_in_order() -> None:
    """A termination is an exception from now on, so that folders and processes go, too."""

    def terminated(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminated)


# -- figures --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }  # fmt: skip


def show_machine(result: dict[str, Any]) -> None:
    """The last line of each bench."""
    console.print(
        f"{result['machine']}, {result['cores']} cores, python {result['python']}, "
        f"Linux {result['kernel']}, load {result['load']:.1f} before the first round; "
        f"repeat: {result['command']}", soft_wrap=True,
    )  # fmt: skip


def show_ratio(text: str, ratios: list[float]) -> None:
    """A median, and what it is one of."""
    if ratios:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        console.print(f"{text}: {statistics.median(ratios):.2f} (by round: {rounds})")


def write_json(result: dict[str, Any], path: Path | None) -> None:
    """Everything, if a file is named."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
