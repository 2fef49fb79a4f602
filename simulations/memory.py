"""Memory that is there when a run needs it.

A virtual machine's free memory may be back with its host, and what is not there is slow to touch:
with 2.6 s of CPU time for each GB (measured, with `dd` into tmpfs: 0.36 GB/s instead of 3.2 GB/s)
it was up to half of a transfer's cost, a sixth of that of a cluster in a lab, and by chance. Nodes
that have a machine each write into memory that their machine has.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2p.units import MIB

AHEAD = 512 * MIB  # free ahead of the writers
WAITING = 1024 * MIB  # may be free and stay (Linux 6.18 here): first that is taken, or as much of
# what is freed later would go back to the host at once
SPARE = 256 * MIB  # is left to others, where there is not much
STEP = 32 * MIB
LOOK_S = 0.05


def room_bytes(folder: Path) -> int:
    """What a tmpfs can still take: neither it nor the memory is full."""
    meminfo = Path("/proc/meminfo").read_text()
    memory = int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    return min(shutil.disk_usage(folder).free, memory)


class _Reserve:
    """A file in tmpfs that shrinks as others write there, so that together they stay as large."""

    def __init__(self, folder: Path, size: int) -> None:
        size = min(size + WAITING, max(0, room_bytes(folder) - SPARE))
        self._folder, self._left = folder, size
        self._most = self._used() + size - AHEAD
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        step = bytes(MIB)
        for at in range(0, size, MIB):
            self._file.write(step[: min(MIB, size - at)])
        self.shrink()

    def _used(self) -> int:
        there = os.statvfs(self._folder)
        return (there.f_blocks - there.f_bfree) * there.f_frsize

    def shrink(self) -> None:
        """Give up as much as others have written since, in steps."""
        left = max(0, self._left - max(0, self._used() - self._most))
        if self._left - left >= STEP or (self._left and not left):
            self._file.truncate(left)
            self._left = left

    def close(self) -> None:
        """Give up the rest."""
        self._file.close()


@contextmanager
def held_ready(folder: Path, size: int) -> Iterator[None]:
    """Whatever writes so many bytes to the tmpfs of `folder` in the block gets memory that was in
    use a moment ago, however long it takes."""
    reserve, over = _Reserve(folder, size), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            reserve.shrink()

    watcher = threading.Thread(target=watch, name="reserve", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        reserve.close()
