"""What all nodes together may ask of one account at the origin, and how that is found out. Pure.

    configured --97 %--> ceiling          a configured limit is paced a little below itself
    no limit --refusal--> 0.9 x what got through --grows, slowly, then faster--> refusal --> ...

Two limits, bytes and requests a second, are token buckets that are paid before they are used: over
any T seconds nodes are allowed at most `rate * T` and one burst. AIMD moves the rates: a refusal
(429, 503) sets the rate to a tenth below what got through in the last 1.5 s, at most once in so
long, and the store's own hint holds back everything meanwhile. Then the rate grows by 0.5 % of
what got through a second: four times as fast up to 96 % of it, and twice as fast with every 5 s
after 20 s without a refusal. It grows only while somebody waits for it. The first rate is a guess
(what got through while nodes began is little): it grows six times as fast until it is refused.

A store that goes on to refuse as large a share while the rate goes down, five rounds in a row, does
not refuse because of it: the rate is restored, and refusals are left to the nodes for 30 s.

Slow bodies without an error are a sign too: three rounds in a row that bring less than half of the
best one, with half as many leases more under way.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil, inf

from p2p.units import MIB

RANGE_BYTES = 8 * MIB  # what a node asks for at once; smaller ones are asked for one by one
HEADROOM = 0.97  # of a configured limit: what a granted request meets on its way differs
BURST_S = 0.05  # or one chunk, whichever is more
LATE_S = 0.01  # who is late for a chunk that is paid for does not lose the rate of that time
HEARTBEAT_S = 0.5
ROUND_S = 1.5  # what got through is told by announces
BACKOFF = 0.9
GROWTH_PER_S = 0.005  # eight seconds from 96 % to where it was, and few refusals beyond
NEAR, RECOVERY, SEARCH = 0.96, 4.0, 6.0
MOST_PER_S = 1.0  # doubled in a second, however long nothing was refused
QUIET_S, DOUBLING_S = 20.0, 5.0
PAUSE_CAP_S = 1.0  # a hint may be for one object: it holds back the cluster no longer
FLOOR_SHARE = 0.05  # of a configured limit
FLOOR_BYTES_S, FLOOR_REQUESTS_S = 256 * 1024.0, 2.0  # without one
SMALL_BYTES = 128 * 1024  # requests below: bandwidth is not what they exhaust
DEAF_AFTER, DEAF_S = 3, 30.0
DEAF_SHARE, DEAF_DROP = 0.1, 0.7
PATIENCE_S = 0.1  # a model that does not come for what it waits for loses its turn
SHAPED_ROUNDS = 3
REQUEST_WORDS = ("qps", "slowdown", "toomanyrequests", "requestlimit")


def requests_for(size_bytes: int) -> int:
    """Requests that so many bytes take, at least 1."""
    return max(1, ceil(size_bytes / RANGE_BYTES))


class Limit:
    """Bytes, or requests, a second: a token bucket whose rate moves.

    Args:
      configured: the account's limit; None: unlimited until the origin says otherwise.
      floor: a second; it shrinks no further.
    """

    def __init__(self, configured: float | None, floor: float) -> None:
        self.configured = configured
        self._ceiling = configured * HEADROOM if configured is not None else inf
        self._floor = configured * FLOOR_SHARE if configured is not None else floor
        self.rate = self._ceiling
        self._step_of = self._ceiling
        self._guessed = False
        self._largest = 0.0
        self._tokens = self._capacity if self.rate < inf else 0.0
        self._wanted_at = -inf

    @property
    def limited(self) -> bool:
        """A rate is in force."""
        return self.rate < inf

    @property
    def _capacity(self) -> float:
        return max(self.rate * BURST_S, self._largest + self.rate * LATE_S)

    def advance(self, elapsed_s: float) -> None:
        """So much time has passed."""
        if self.limited:
            self._tokens = min(self._capacity, self._tokens + self.rate * elapsed_s)

    def grow(self, elapsed_s: float, quiet_s: float, now: float) -> None:
        """Nothing was refused for `quiet_s`; a rate that nobody waits for does not grow."""
        if self.rate < self._ceiling and now - self._wanted_at <= 1.0:
            speed = 2.0 ** min(60.0, max(0.0, (quiet_s - QUIET_S) / DOUBLING_S))
            if self._guessed:  # faster, it would be far beyond when it is refused
                speed = max(speed, SEARCH)
            elif self.rate < NEAR * self._step_of:
                speed = max(speed, RECOVERY)
            step = min(self._step_of * GROWTH_PER_S * speed, self.rate * MOST_PER_S)
            self.rate = min(self._ceiling, self.rate + step * min(elapsed_s, 1.0))

    def ready_s(self, amount: float) -> float:
        """In how many seconds so much is there; 0: now."""
        if not self.limited:
            return 0.0
        if amount > self._largest:
            full, self._largest = self._tokens >= self._capacity, amount
            if full:  # nobody knew how much could be saved up
                self._tokens = self._capacity
        missing = amount - self._tokens
        return missing / self.rate if missing > amount * 1e-6 else 0.0

    def wanted(self, now: float) -> None:
        """Somebody waits for it."""
        self._wanted_at = now

    def spend(self, amount: float) -> None:
        """It is allowed."""
        if self.limited:
            self._tokens -= amount

    def back(self, amount: float) -> None:
        """It was allowed, and not used."""
        if self.limited:
            self._tokens += amount  # `advance` keeps it to a burst

    def shrink(self, passed: float) -> None:
        """`passed` a second got through, and more was asked for."""
        if not passed and not self.limited:
            return  # an outage: what the origin could bear is not known
        base = min(self.rate, passed)
        half = self.rate / 2 if self.limited else 0.0
        self._guessed = not self.limited
        self.rate = max(self._floor, min(self.rate * BACKOFF, max(base * BACKOFF, half)))
        self.rate = min(self.rate, self._ceiling)
        self._step_of = max(base, half, self._floor)
        self._tokens = min(self._tokens, 0.0)

    def restore(self, rate: float) -> None:
        """It was not the rate."""
        self.rate = rate


class Passed:
    """What got through in the last round, by the nodes' announces.

    An announce tells of the half second before it, so the time is counted from one announce to
    another: from the last one before the round, whose own bytes are left out.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()
        self.requests = 0

    def add(self, size_bytes: int, requests: int, now: float) -> None:
        """A node has received so much more."""
        self.requests += requests
        if not self._samples or self._samples[-1][0] < now - ROUND_S:
            self._samples = deque([(now - HEARTBEAT_S, 0, 0)])
        self._samples.append((now, size_bytes, requests))
        while self._samples[1][0] <= now - ROUND_S:
            self._samples.popleft()

    def rates(self, now: float) -> tuple[float, float]:
        """Bytes and requests a second."""
        if not self._samples or self._samples[-1][0] < now - ROUND_S:
            return 0.0, 0.0
        counted = list(self._samples)[1:]
        end = max(counted[-1][0], now - HEARTBEAT_S)
        span_s = max(end - self._samples[0][0], HEARTBEAT_S)
        size, requests = sum(entry[1] for entry in counted), sum(entry[2] for entry in counted)
        return size / span_s, requests / span_s


class Shaping:
    """Rounds of bytes received and leases under way: less for more is a sign."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._bytes = 0
        self._leases: list[int] = []
        self._best = (0.0, 0.0)
        self._worse = 0

    def add(self, size_bytes: int, leases: int, now: float) -> bool:
        """Take a sample; true at the end of the round that makes it a sign."""
        if self._begin is None:
            self._begin = now
        self._bytes += size_bytes
        self._leases.append(leases)
        elapsed_s = now - self._begin
        if elapsed_s < ROUND_S:
            return False
        found = self._bytes / elapsed_s, sum(self._leases) / len(self._leases)
        self._begin, self._bytes, self._leases = now, 0, []
        if found[0] > self._best[0]:
            self._best, self._worse = found, 0
        elif found[0] <= self._best[0] / 2 and found[1] >= self._best[1] * 1.5:
            self._worse += 1
        else:
            self._worse = 0
        if self._worse < SHAPED_ROUNDS:
            return False
        self._best, self._worse = found, 0
        return True


@dataclass(slots=True)
class _Series:
    """Decisions in rounds that follow each other: does shrinking help?"""

    count: int = 0
    share: float = 0.0
    bytes_s: float = inf
    requests_s: float = inf


class Budget:
    """One account's limits.

    Args:
      rate_bytes_s, requests_s: what is configured; None: found out.
    """

    def __init__(self, rate_bytes_s: float | None = None, requests_s: float | None = None) -> None:
        self.bytes = Limit(rate_bytes_s, FLOOR_BYTES_S)
        self.requests = Limit(requests_s, FLOOR_REQUESTS_S)
        self.granted_bytes = self.granted_requests = self.refused_requests = 0
        self._passed, self._shaping, self._series = Passed(), Shaping(), _Series()
        self._now = 0.0
        self._paused_until = self._deaf_until = -inf
        self._decided_at = self._refused_at = -inf
        self._marks = (0, 0)
        self._waiting: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Budget {self.bytes.rate:.0f} bytes/s {self.requests.rate:.1f} requests/s>"

    @property
    def limited(self) -> bool:
        """A limit is in force: nodes have to ask before each request."""
        return self.bytes.limited or self.requests.limited

    def _advance(self, now: float) -> None:
        elapsed_s, self._now = max(0.0, now - self._now), max(now, self._now)
        usable_s = min(elapsed_s, max(0.0, now - self._paused_until))
        quiet_s = now - self._refused_at
        for limit in (self.bytes, self.requests):
            limit.advance(usable_s)
            if quiet_s >= ROUND_S:
                limit.grow(elapsed_s, quiet_s, now)

    # -- allowances -------------------------------------------------------------------------------

    def _ready_s(self, size_bytes: int, requests: int, now: float) -> float:
        pause_s = max(0.0, self._paused_until - now)
        ready_s = max(self.bytes.ready_s(size_bytes), self.requests.ready_s(requests))
        return pause_s + ready_s

    def take(self, size_bytes: int, requests: int, now: float, who: str = "") -> bool:
        """Allow so much, if there is room; models (`who`) that found none come in turn."""
        self._advance(now)
        ready_s = self._ready_s(size_bytes, requests, now)
        for other in [w for w, until in self._waiting.items() if until <= now and w != who]:
            del self._waiting[other]
        if ready_s > 0 or next(iter(self._waiting), who) != who:
            self._waiting[who] = now + ready_s + PATIENCE_S
            if self.bytes.ready_s(size_bytes) > 0:
                self.bytes.wanted(now)
            if self.requests.ready_s(requests) > 0:
                self.requests.wanted(now)
            return False
        self._waiting.pop(who, None)
        self.bytes.spend(size_bytes)
        self.requests.spend(requests)
        self.granted_bytes += size_bytes
        self.granted_requests += requests
        return True

    def next_deadline(self, size_bytes: int, requests: int, now: float) -> float:
        """When `take` of so much is to be tried again."""
        return now + max(self._ready_s(size_bytes, requests, now), 0.001)

    def back(self, size_bytes: int, requests: int, now: float) -> None:
        """Allowed, and not used."""
        self._advance(now)
        self.bytes.back(size_bytes)
        self.requests.back(requests)
        self.granted_bytes -= min(size_bytes, self.granted_bytes)
        self.granted_requests -= min(requests, self.granted_requests)

    # -- what the origin says ---------------------------------------------------------------------

    def passed(self, size_bytes: int, requests: int, leases: int, now: float) -> None:
        """A node received so much since its last announce; `leases` are under way in all."""
        self._passed.add(size_bytes, requests, now)
        if self._shaping.add(size_bytes, leases, now):
            self._advance(now)
            self._decided_at = self._refused_at = now
            self.bytes.shrink(self._passed.rates(now)[0])

    def throttled(self, retry_after_s: float, now: float, code: str = "") -> None:
        """The origin refused a request: 429 or 503, with its hint (0: none) and its own word."""
        self._advance(now)
        self.refused_requests += 1
        if now < self._deaf_until:
            return
        self._refused_at = now
        if now < self._decided_at + ROUND_S:
            return
        bytes_s, requests_s = self._passed.rates(now)
        if self._is_deaf(now):
            self._deaf_until = now + DEAF_S
            self.bytes.restore(self._series.bytes_s)
            self.requests.restore(self._series.requests_s)
            self._series = _Series()
            return
        self._decided_at = now
        self._paused_until = max(self._paused_until, now + min(retry_after_s, PAUSE_CAP_S))
        word = code.lower()
        if any(known in word for known in REQUEST_WORDS) or (
            "rate" not in word and requests_s and bytes_s / requests_s < SMALL_BYTES
        ):
            self.requests.shrink(requests_s)
        else:
            self.bytes.shrink(bytes_s)

    def _is_deaf(self, now: float) -> bool:
        """Whether refusals stay as many, however far the rate went down."""
        refused, passed = self.refused_requests, self._passed.requests
        refused, passed = refused - self._marks[0], passed - self._marks[1]
        self._marks = self.refused_requests, self._passed.requests
        share = refused / (refused + passed)
        if now > self._decided_at + 2 * ROUND_S:
            self._series = _Series(0, share, self.bytes.rate, self.requests.rate)
        self._series.count += 1
        if self._series.count == 2:  # the first decision had no whole round to judge by
            self._series.share = share
        enough = self._series.count > DEAF_AFTER + 1 and share >= DEAF_SHARE
        return enough and share >= DEAF_DROP * self._series.share
