"""What the data workers of a node share: the host's limits, and who writes to a file.

Every byte to be moved under a limit is asked for here.

The workers of a node share one line for each direction: when it is free again (`Pacer.free_at`) is
a number in memory that all of them map, changed under a record lock that the kernel gives back when
a worker dies. So the sum keeps within the limit at every moment, and what an idle worker does not
use another one has at once; shares that are divided by need can do only one of the two. A
turn takes 10 us, 3.5 of them for the lock and the grant, and comes at most every 5 ms.

Without a limit nothing of this happens: whoever moves bytes looks whether `pacer` is None.

And they write to a file one after another. The kernel sees to that as well, but there who finds a
file being written spins for as long as the other runs: two workers that received one file spent a
sixth of their CPU time so (`rwsem_spin_on_owner`, simulations/RESULTS.md). Here it sleeps.
"""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import trio

from p2p.rates import Grant, Pacer

UPLOAD, DOWNLOAD = 0, 1
_SECONDS = struct.Struct("=d")
_SIZE = 2 * _SECONDS.size


class Meter:
    """The memory that the workers of a node share.

    Args:
      descriptor: inherited from the control process; None makes a new one.

    Raises:
      OSError: there is no memory.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("shoal-limits")
            os.ftruncate(descriptor, _SIZE)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)

    @contextmanager
    def locked(self, direction: int, pacer: Pacer) -> Iterator[None]:
        """Inside, nobody else changes the line of a direction, and `pacer` stands for it."""
        at = direction * _SECONDS.size
        with self._lock(at, _SECONDS.size):
            (pacer.free_at,) = _SECONDS.unpack_from(self._map, at)
            yield
            _SECONDS.pack_into(self._map, at, pacer.free_at)

    def writing(self, file: int) -> AbstractContextManager[None]:
        """Inside, no other worker writes to a file of the model."""
        return self._lock(_SIZE + file, 1)

    @contextmanager
    def _lock(self, at: int, size: int) -> Iterator[None]:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, size, at)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, size, at)

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.descriptor)


class Throttle:
    """One direction of one worker. Links take turns; `pacer` is None while there is no limit.

    Args:
      meter: shared with the other workers; None: there are none.
      direction: `UPLOAD` or `DOWNLOAD`.
      clock: seconds that are the same in all processes (trio's are not).
    """

    def __init__(
        self,
        meter: Meter | None,
        direction: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pacer: Pacer | None = None
        self._meter = meter
        self._direction = direction
        self._clock = clock
        self._turn = (
            trio.StrictFIFOLock()
        )  # one grant is open at a time: a late timer moves no more
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Throttle {('upload', 'download')[self._direction]} {self.pacer}>"

    def set(self, rate_bytes_s: int | None) -> None:
        """The limit of the whole node; it holds for those who wait, too."""
        self.pacer = None if rate_bytes_s is None else Pacer(rate_bytes_s)
        self._changed.set()
        self._changed = trio.Event()

    async def take(self, wanted: int) -> int:
        """Wait until some of `wanted` bytes may be moved, and at once; returns how many."""
        async with self._turn:
            while (pacer := self.pacer) is not None:
                changed, grant = self._changed, self._grant(pacer, wanted)
                if not grant.wait_s:
                    return grant.size
                good = False
                try:
                    with trio.move_on_after(grant.wait_s):
                        await changed.wait()
                    good = not changed.is_set()
                finally:
                    if not good:
                        with self._locked(pacer):
                            pacer.refund(grant.size)
                if good:
                    return grant.size
        return wanted

    async def pay(self, count: int) -> None:
        """`count` bytes have come already: wait until they may have."""
        while count > 0 and self.pacer is not None:
            count -= await self.take(count)

    def _grant(self, pacer: Pacer, wanted: int) -> Grant:
        with self._locked(pacer):
            return pacer.grant(wanted, self._clock())

    def _locked(self, pacer: Pacer) -> AbstractContextManager[None]:
        return nullcontext() if self._meter is None else self._meter.locked(self._direction, pacer)
