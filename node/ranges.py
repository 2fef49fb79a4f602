"""What a range request to the origin decides: its size, when to try again, when to hedge. Pure.

    Tries       one range: a cut body goes on where it ended, what cannot be mended ends it
    RangeSize   all ranges of a worker: between 4 and 32 MiB, by how long one takes
    Hedges      all ranges of a kind: slower than nearly all others, and a second one is sent

No clock and no socket here; seconds come in, decisions go out.
"""

from collections import deque
from math import inf
from random import Random

from p2p.backoff import full_jitter
from p2p.errors import OriginError
from p2p.units import MIB

RANGE_LOWEST, RANGE_FIRST, RANGE_HIGHEST = 4 * MIB, 8 * MIB, 32 * MIB
QUICK_S, SLOW_S = 0.1, 2.0  # below: the request itself is the cost; above: a cut costs too much

# Each counted since the last byte that came:
FRUITLESS = 5  # answers with a good head and not one byte of the body: no outage is so
TRANSIENT = 4  # 503, 429 and broken connections, before the lease's own rules decide
LONG_WAIT_S = 2.0  # a lease lives so long without progress: a longer wait is for another node
STALL_FIRST_S, STALL_CAP_S = 1.5, 12.0  # below the lease's 2 s, then longer: a loaded store is slow

SAMPLES = 512
SAMPLES_NEEDED = 50  # fewer say nothing about the slowest hundredth
HEDGE_SHARE = 0.01
HEDGE_FLOOR_S = 0.05  # a scheduler's hiccup is no slow request


class Tries:
    """The tries of one range.

    Args:
      rng: spreads the waits of a crowd that failed together.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._fruitless = 0
        self._transient = 0
        self._stalls = 0

    @property
    def stall_s(self) -> float:
        """How long to wait for the next byte; doubles with each stall in a row."""
        return min(STALL_CAP_S, STALL_FIRST_S * 2.0**self._stalls)

    def cut(self, *, progressed: bool, had_head: bool, stalled: bool) -> float | None:
        """The connection broke or fell silent.

        Returns:
          Seconds to wait before going on at the received offset; None: give up, bodies never come
          (`fruitless`) or the server cannot be reached.
        """
        if progressed:
            self._fruitless = self._transient = 0
            self._stalls = self._stalls + 1 if stalled else 0
            return 0.0
        self._stalls += stalled
        if had_head and not stalled:
            self._fruitless += 1
            return 0.0 if self._fruitless < FRUITLESS else None
        return self._wait(0.0)

    def refused(self, error: OriginError) -> float | None:
        """An answer that is not the range.

        Returns:
          Seconds to wait before asking again; None: end this fetch with the error.
        """
        if error.fatal or (error.retry_after_s or 0.0) > LONG_WAIT_S:
            return None
        return self._wait(error.retry_after_s or 0.0)

    def _wait(self, hint_s: float) -> float | None:
        self._transient += 1
        if self._transient >= TRANSIENT:
            return None
        return max(hint_s, full_jitter(self._transient, 0.1, 1.0, self._rng))

    @property
    def fruitless(self) -> bool:
        """It was given up because good heads came without bodies."""
        return self._fruitless >= FRUITLESS


class RangeSize:
    """How many bytes to ask for at once.

    A doubled range halves the requests (stores limit them by the second); a halved one loses less
    to a cut and lets more connections work on one chunk.
    """

    def __init__(self) -> None:
        self.bytes = RANGE_FIRST
        self._quick = self._slow = 0

    def completed(self, size_bytes: int, seconds: float) -> None:
        """A request of so many bytes took so long. Eight of a kind in a row change the size."""
        if size_bytes < RANGE_LOWEST:  # the end of a chunk says nothing about a full range
            return
        self._quick = self._quick + 1 if seconds < QUICK_S else 0
        self._slow = self._slow + 1 if seconds > SLOW_S else 0
        if self._quick == 8 or self._slow == 8:
            used = min(self.bytes, size_bytes)  # chunks may be smaller than the size in force
            wanted = self.bytes * 2 if self._quick else used // 2
            self.bytes = min(max(wanted, RANGE_LOWEST), RANGE_HIGHEST)
            self._quick = self._slow = 0

    def cut(self, start: int, end: int, block_bytes: int) -> list[tuple[int, int]]:
        """A span in ranges of about this size, at block borders."""
        step = max(block_bytes, self.bytes // block_bytes * block_bytes)
        return [(at, min(at + step, end)) for at in range(start, end, step)]


class Hedges:
    """When a request is slow, and whether one more may be sent for it.

    Dean and Barroso ("The Tail at Scale", 2013): a second request after the 95th percentile costs
    5 % more load; here it waits for the 99th, and never more than one request in a hundred is one.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.hedged = 0
        self._seconds: deque[float] = deque(maxlen=SAMPLES)

    def started(self) -> float:
        """A request was sent; returns after how many seconds it is slow (infinity: not known)."""
        self.requests += 1
        if len(self._seconds) < SAMPLES_NEEDED:
            return inf
        ordered = sorted(self._seconds)
        p99, median = ordered[len(ordered) * 99 // 100], ordered[len(ordered) // 2]
        return max(p99, 2 * median, HEDGE_FLOOR_S)

    def completed(self, seconds: float) -> None:
        """A request brought its whole range in so long."""
        self._seconds.append(seconds)

    def allowed(self) -> bool:
        """One may be hedged now; it is counted."""
        if self.hedged + 1 > HEDGE_SHARE * self.requests:
            return False
        self.hedged += 1
        return True
