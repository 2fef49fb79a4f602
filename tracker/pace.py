"""How many leases a model has out at once: as few as keep the origin busy. Pure.

Every lease beyond that makes all of them take longer: on the shaped cluster of 50 nodes 10 to 12
leases were best, and one a node cost 20 %; of 8 nodes 10, and 16 had a longer tail. But a store
that gives each connection a share of its own needs hundreds. So the number starts low and is
raised as long as more leases bring more bytes:

    STEADY --a try is due--> TRYING half as many more --a window of reports--> brought more: kept
       ^                                                                       else: taken back
       '------- the next try comes later and later while tries bring nothing -------'
"""

from math import ceil, inf

LEAST = 10  # what keeps one origin's link busy while each lease changes hands
PER_NODE = 0.2
FIRST, FIRST_PER_NODE = 4, 0.0625  # at the very beginning
STEP = 1.5
WORTH = 1.2  # of what half as many more could bring, two fifths are enough
WINDOW_S = 0.25
ROUNDS = 3  # of reports in a window: fewer say little about a rate
AGAIN_FIRST_S, AGAIN_CAP_S = 4.0, 60.0
SHARE = 8  # of the time at most one part is spent in tries, however long a window lasts


def beginning(nodes: int, fetched: int) -> int:
    """Leases that may be out when so many chunks have come: at first a few, and one more with each.

    Ten at once would each take ten times as long, and nobody has anything to pass on until one is
    whole: of 50 nodes all links were idle for half a second more.
    """
    return max(FIRST, ceil(nodes * FIRST_PER_NODE)) + fetched


class Pace:
    """The limit of one model."""

    def __init__(self) -> None:
        self._limit = float(LEAST)
        self._steady_rate = 0.0
        self._trying = False
        self._try_at = -inf
        self._wait_s = AGAIN_FIRST_S
        self._begun_at: float | None = None
        self._settling = 0
        self._bytes = 0
        self._reports = 0

    def limit(self, nodes: int) -> int:
        """Leases that may be out at once, when so many nodes could hold one."""
        return max(ceil(self._limit), LEAST, ceil(nodes * PER_NODE))

    def fetched(self, size: int, nodes: int, in_flight: int, now: float) -> None:
        """A chunk of so many bytes came from the origin.

        Args:
          in_flight: leases that were out, this one too: fewer than the limit say nothing of it.
        """
        limit = self.limit(nodes)
        if in_flight < limit:
            self._restart()
            return
        if self._settling > 0:  # granted before the limit changed
            self._settling -= 1
            return
        if self._begun_at is None:
            self._begun_at = now
            return
        self._bytes += size
        self._reports += 1
        elapsed_s = now - self._begun_at
        if self._reports >= ROUNDS * limit and elapsed_s >= WINDOW_S:
            self._judge(self._bytes / elapsed_s, limit, elapsed_s, now)

    def _judge(self, rate: float, limit: int, elapsed_s: float, now: float) -> None:
        """A window is over."""
        if not self._trying:
            self._steady_rate = rate
            if now >= self._try_at:
                self._trying, self._limit = True, limit * STEP
            self._restart(limit)
        elif rate >= self._steady_rate * WORTH:
            self._steady_rate, self._wait_s = rate, AGAIN_FIRST_S
            self._limit = limit * STEP
            self._restart(limit)
        else:
            self._trying, self._limit = False, limit / STEP
            self._try_at = now + max(self._wait_s, SHARE * elapsed_s)
            self._wait_s = min(2 * self._wait_s, AGAIN_CAP_S)
            self._restart(limit)

    def _restart(self, settling: int = 0) -> None:
        self._begun_at, self._settling = None, settling
        self._bytes = self._reports = 0
