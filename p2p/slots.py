"""Upload slots: a bounded number of transfers at once, and an immediate busy for the rest.

Queueing behind a loaded holder cost up to 5.4 x the bound in the fluid model; a refusal lets the
other side ask somewhere else at once.
"""

from p2p.rates import Average

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
        self._seconds = Average(weight=0.2)

    def acquire(self, *, demand: bool = False) -> bool:
        """Take a slot, if there is one; it is given back with `release`."""
        if self.used >= self.limit + (self.reserved if demand else 0):
            self.busy_count += 1
            return False
        self.used += 1
        return True

    def release(self, seconds: float) -> None:
        """A transfer that took so long has ended."""
        self.used -= 1
        self._seconds.add(seconds)

    @property
    def retry_after_s(self) -> float:
        """When a slot is likely to be free: of n transfers, one ends every n-th of their time."""
        expected_s = self._seconds.value / max(1, self.used)
        return min(max(expected_s, RETRY_LOWEST_S), RETRY_HIGHEST_S)
