"""Averages that forget."""


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
