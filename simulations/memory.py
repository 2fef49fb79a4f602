"""Memory that is there when a run needs it.

A virtual machine's free memory may be back with its host, and what is not there is slow to touch:
with 2.6 s of CPU time for each GB (measured, with `dd` into tmpfs: 0.36 GB/s instead of 3.2 GB/s)
it was up to half of a transfer's cost, a sixth of that of a cluster in a lab, and by chance. Nodes
that have a machine each write into memory that their machine has.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2p.units import MIB

AHEAD = 512 * MIB  # free ahead of the writers; what is free in excess may go back to the host
STEP = 32 * MIB
LOOK_S = 0.05


def _fill(path: Path, size: int) -> None:
    step = bytes(MIB)
    with path.open("wb", buffering=0) as stream:
        for at in range(0, size, MIB):
            stream.write(step[: min(MIB, size - at)])


def touch_memory(folder: Path, size: int) -> None:
    """Let the pages that the next copy takes be pages that were in use a moment ago."""
    path = folder / "touched"
    _fill(path, size)
    path.unlink()


class _Reserve:
    """A file in tmpfs that shrinks as others write there, so that together they stay as large."""

    def __init__(self, folder: Path, size: int) -> None:
        self._path, self._size = folder / "reserve", size
        before = self._used()
        _fill(self._path, size)
        self._left = size
        self._most = before + size - AHEAD
        self.shrink()

    def _used(self) -> int:
        there = os.statvfs(self._path.parent)
        return (there.f_blocks - there.f_bfree) * there.f_frsize

    def shrink(self) -> None:
        """Give up what was written by others since, in steps."""
        left = max(0, self._left - max(0, self._used() - self._most))
        if self._left - left >= STEP or (self._left and not left):
            os.truncate(self._path, left)
            self._left = left

    def close(self) -> None:
        """Give up the rest."""
        self._path.unlink(missing_ok=True)


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
