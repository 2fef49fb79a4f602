"""Rates: averages that forget, and the pacer that holds one.

A pacer sells a line of `rate_bytes_s` in advance. `free_at` is when all that was sold so far has
gone over it; who is granted bytes waits until its own have, too:

    now - 20 ms         free_at        free_at + count / rate
    |-------------------|--------------|
      unused: kept for    this grant: its bytes may move when the clock gets to its end
      so long, no longer

So in any time t at most `rate * t` and one burst is moved, whoever asks, and nobody overtakes.
`free_at` is the whole state: workers share it (see `node.throttle`).
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from p2p.errors import UsageError

LOWEST_LIMIT_BYTES_S = 125_000  # 1 Mbit/s; dozens of links that share less would seem stalled
BURST_S = 0.02  # 2 % of a second: unused time that is kept, as a timer may be late by as much
BURST_LOWEST_BYTES = 4096  # 3.3 % of a second at the lowest limit; 16 KiB would be 13 %
SLICES = 4  # of a burst: 100 links in a row get bytes within half a second, long before a stall


class Grant(NamedTuple):
    """`size` bytes may be moved after `wait_s`."""

    size: int
    wait_s: float


class Pacer:
    """A token bucket that grants in order.

    Args:
      rate_bytes_s: more than 0.
    """

    def __init__(self, rate_bytes_s: float) -> None:
        self.rate_bytes_s = rate_bytes_s
        burst_bytes = max(BURST_LOWEST_BYTES, rate_bytes_s * BURST_S)
        self.burst_s = burst_bytes / rate_bytes_s
        self.slice_bytes = int(burst_bytes / SLICES)
        """the most that is granted at once"""
        self.free_at = -inf

    def __repr__(self) -> str:
        return f"<Pacer {self.rate_bytes_s:.0f} B/s free_at={self.free_at:.3f}>"

    def grant(self, wanted_bytes: int, now: float) -> Grant:
        """Sell at most `wanted_bytes` (more than 0), at least one byte."""
        count = min(wanted_bytes, self.slice_bytes)
        self.free_at = max(self.free_at, now - self.burst_s) + count / self.rate_bytes_s
        return Grant(count, max(0.0, self.free_at - now))

    def refund(self, count: int) -> None:
        """`count` granted bytes will not be moved."""
        self.free_at -= count / self.rate_bytes_s


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Payload bytes a second of a whole node, to peers and from peers and origin; None: no limit.

    Raises:
      UsageError: less than 1 Mbit/s.
    """

    upload_bytes_s: int | None = None
    download_bytes_s: int | None = None

    def __post_init__(self) -> None:
        for rate in (self.upload_bytes_s, self.download_bytes_s):
            if rate is not None and rate < LOWEST_LIMIT_BYTES_S:
                raise UsageError("a limit below 1mbit looks like a stalled node: give more, or off")


class Average:
    """An exponentially weighted moving average; the first sample counts whole.

    Args:
      weight: share of a new sample, above 0 and at most 1.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._value: float | None = None

    @property
    def value(self) -> float:
        """The average, 0 before the first sample."""
        return self._value or 0.0

    def add(self, sample: float) -> None:
        """Take a sample."""
        if self._value is None:
            self._value = sample
        else:
            self._value += self._weight * (sample - self._value)


class Rate:
    """Bytes a second from a growing total, read at any moments.

    Args:
      half_life_s: a change shows by half after so long.
    """

    def __init__(self, half_life_s: float = 1.0) -> None:
        self._half_life_s = half_life_s
        self._total: float | None = None
        self._at = 0.0
        self._value = 0.0

    def update(self, total: float, now: float) -> float:
        """Take the total at `now`; returns the rate."""
        if self._total is not None and now > self._at:
            elapsed_s = now - self._at
            keep = 0.5 ** (elapsed_s / self._half_life_s)
            self._value = keep * self._value + (1 - keep) * (total - self._total) / elapsed_s
        self._total, self._at = total, now
        return self._value
