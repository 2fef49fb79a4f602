"""What an origin sees: a log of requests with their times, and a limit above which it refuses."""

import threading
import time
from dataclasses import dataclass, field

from support.oss import Fault, ObjectGet


@dataclass(frozen=True)
class Seen:
    """One GET: body `bytes` were sent for it, or it was `refused`."""

    at: float
    bytes: int
    refused: bool


@dataclass
class Log:
    """GETs of objects as they came; a fault hook writes it."""

    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size_bytes: int, *, refused: bool) -> None:
        """A GET is answered now."""
        with self.lock:
            self.seen.append(Seen(time.monotonic(), size_bytes, refused))

    def copy(self) -> list[Seen]:
        """What came so far."""
        with self.lock:
            return list(self.seen)

    def busiest(self, window_s: float) -> tuple[int, int]:
        """The most requests and the most body bytes of any `window_s`, each by itself."""
        seen = self.copy()
        requests = size = first = most_requests = most_bytes = 0
        for entry in seen:
            requests, size = requests + 1, size + entry.bytes
            while seen[first].at <= entry.at - window_s:
                requests, size, first = requests - 1, size - seen[first].bytes, first + 1
            most_requests, most_bytes = max(most_requests, requests), max(most_bytes, size)
        return most_requests, most_bytes


class Shaper:
    """Refuses what exceeds `rate_bytes_s`, and says how long to wait: a fault hook for `OssServer`.

    Args:
      burst_bytes: what it lets through at once after a pause.
    """

    def __init__(self, rate_bytes_s: float, burst_bytes: float) -> None:
        self.log = Log()
        self._rate, self._burst = rate_bytes_s, burst_bytes
        self._tokens, self._at = burst_bytes, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, get: ObjectGet) -> Fault | None:
        """503 with a hint, or None."""
        size = get.end - get.start
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            missing = size - self._tokens
            if missing <= 0:
                self._tokens -= size
        if missing <= 0:
            self.log.add(size, refused=False)
            return None
        self.log.add(0, refused=True)
        delay_ms = max(1, round(missing / self._rate * 1000))
        return Fault(503, "DownloadTrafficRateLimitExceeded", delay_ms=delay_ms)
