"""Upload slots: a bounded number of transfers at once, and an immediate busy for the rest.

Queueing behind a loaded holder cost up to 5.4 x the bound in the fluid model; a refusal lets the
other side ask somewhere else at once.

What was asked ahead needs no slot, but is refused likewise once too much can be sent already. How
much is too much depends on the uplink: one that is slower than what comes in cannot send all that
the trees want of it, its queue only grows, and all below it in a tree wait for that. It has to
refuse soon. Where all uplinks are alike and just suffice, what is to be sent comes in bursts, and a
queue keeps the link busy between them: of 50 nodes that refused from 0.15 s on, 12 % of all
requests went elsewhere, where each waited for an announcement, and those behind it, too (1.17 x the
bound; 1.12 x with 1.5 s).
"""

from collections.abc import Callable

from p2p.rates import Average

YIELD_S = 0.05  # a need of a few blocks has left by then
READY_SLOW_S, READY_MOST_S = 0.15, 1.5  # what is ready may take so long
READY_MOST = 4  # and so many answers may be ready, however long they take
SLOW = 0.8  # an uplink that carries less than this part of what comes in
RETRY_LOWEST_S, RETRY_HIGHEST_S = 0.01, 2.0


class UploadSlots:
    """Who may send now.

    Args:
      limit: transfers at once, the reserved ones not counted.
      reserved: further transfers, for blocked application reads only.
    """

    def __init__(self, limit: int, reserved: int) -> None:
        self.limit = limit
        self.reserved = reserved
        self.used = 0
        self.busy_count = 0
        self.ready_bytes = 0
        """of answers that waited for their chunk and could go on"""
        self.rate_bytes_s = 0.0
        """what the uplink carries, as far as is known; 0: not yet"""
        self.coming_bytes_s = 0.0
        """what comes in at its best"""
        self._seconds = Average(weight=0.2)
        self._urgent = 0
        self._urgent_from = 0.0
        self._yielding: dict[Callable[[], None], None] = {}

    def behind(self, size: int) -> bool:
        """More is ready than leaves in time, and than a few answers of this size."""
        slow = self.rate_bytes_s < SLOW * self.coming_bytes_s
        most_s = READY_SLOW_S if slow else READY_MOST_S
        most = max(self.rate_bytes_s * most_s, READY_MOST * size)
        return self.rate_bytes_s > 0 and self.ready_bytes > most

    def acquire(self, size: int, *, demand: bool = False) -> bool:
        """Take a slot for an answer of so many bytes, if there is one; `release` gives it back."""
        full = self.used >= self.limit + (self.reserved if demand else 0)
        if full or (self.behind(size) and not demand):
            self.busy_count += 1
            return False
        self.used += 1
        return True

    def release(self, seconds: float) -> None:
        """A transfer that took so long has ended."""
        self.used -= 1
        self._seconds.add(seconds)

    # -- what readers are blocked on, before all else ----------------------------------------------

    def urgent_began(self, now: float) -> None:
        """A transfer that a reader is blocked on begins."""
        if not self._urgent:
            self._urgent_from = now
        self._urgent += 1

    def urgent_ended(self) -> None:
        """It is over; with the last one, whoever yielded goes on."""
        self._urgent -= 1
        if not self._urgent:
            self.go_on()

    def yields(self, now: float) -> bool:
        """Other transfers send nothing now. Not for long: a reader may be blocked all the time."""
        return self._urgent > 0 and now < self._urgent_from + YIELD_S

    def wait(self, call: Callable[[], None]) -> None:
        """Call this when it may send again. It must not raise."""
        self._yielding[call] = None

    def go_on(self) -> None:
        """Whoever yielded looks again."""
        yielding, self._yielding = self._yielding, {}
        for call in yielding:
            call()

    @property
    def retry_after_s(self) -> float:
        """When a slot is likely to be free: of n transfers, one ends every n-th of their time."""
        expected_s = self._seconds.value / max(1, self.used)
        return min(max(expected_s, RETRY_LOWEST_S), RETRY_HIGHEST_S)
