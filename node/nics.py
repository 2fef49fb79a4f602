"""Source addresses towards the origin: which one the next request leaves from. Pure.

Every address has slots of its own, and its rate is measured while requests are under way on it. A
request takes a slot where it can expect most: the rate, shared with what is there already. Nothing
waits while any slot is free; a rate that was measured long ago is forgotten, so that a slow NIC is
tried again; and what a slow one still holds when another is idle, that one takes (`steal`). An
address from which nothing gets out is left alone for a while, and then tried with one request at a
time:

    UP --failed()--> DOWN --its time has come--> PROBED --came()--> UP
                      ^                             |
                      '--------- failed() ----------'
"""

from dataclasses import dataclass
from math import inf

from p2p.limits import Limits
from p2p.rates import Average

DOWN_FIRST_S, DOWN_CAP_S = 0.5, 4.0
RATE_WEIGHT = 0.4  # of the last quarter of a second: a change shows by 3/4 after two thirds of one
BUSY_LEAST_S = 0.05  # less says nothing about a rate
FORGET_S = 2.0  # idle for so long: it may be another NIC by now, one request finds out
STEAL_S = 0.25  # a range that ends sooner is not worth a cut connection


@dataclass(slots=True, eq=False)
class Source:
    """One local address; the empty one leaves the choice to the kernel."""

    ip: str
    used: int = 0
    bytes: int = 0
    failures: int = 0
    down_until: float = 0.0
    rate: Average | None = None
    """bytes a second while it is used; None: not measured, or not lately"""
    _busy_s: float = 0.0
    _busy_since: float = 0.0
    _idle_since: float = 0.0
    _counted: int = 0

    @property
    def probed(self) -> bool:
        """It has failed and not worked since."""
        return self.failures > 0

    def took(self, now: float) -> None:
        """A request begins."""
        if not self.used:
            self._busy_since = now
        self.used += 1

    def released(self, now: float) -> None:
        """A request has ended."""
        self.used -= 1
        if not self.used:
            self._busy_s += now - self._busy_since
            self._idle_since = now

    def came(self, count: int) -> None:
        """Bytes came."""
        self.bytes += count
        self.failures = 0

    def measure(self, now: float) -> None:
        """Bring the rate up to date; to be called every now and then."""
        if self.used:
            self._busy_s += now - self._busy_since
            self._busy_since = now
        elif now - self._idle_since > FORGET_S:
            self.forget()
        if self._busy_s < BUSY_LEAST_S:
            return
        if self.rate is None:
            if self.bytes == self._counted:
                return
            self.rate = Average(RATE_WEIGHT)
        self.rate.add((self.bytes - self._counted) / self._busy_s)
        self._counted, self._busy_s = self.bytes, 0.0

    def share(self, requests: int) -> float:
        """Bytes a second for each of so many requests; infinity while nothing is known."""
        return inf if self.rate is None else self.rate.value / max(1, requests)

    def forget(self) -> None:
        """What was measured says nothing any more."""
        self.rate, self._counted, self._busy_s = None, self.bytes, 0.0


class Sources:
    """All addresses of one worker.

    Args:
      ips: local addresses; none: the kernel chooses.
      slots: requests at once from each.
      home: the address whose NIC is near this worker: it is used first.
    """

    def __init__(self, ips: tuple[str, ...], slots: int, home: str = "") -> None:
        self._slots = slots
        self._home = home
        self.all = [Source(ip) for ip in ips or ("",)]

    def take(self, now: float) -> Source | None:
        """A slot, given back with `release`; None: none is free now."""
        source = self.best(now)
        if source is not None:
            source.took(now)
        return source

    def take_at_once(self, now: float) -> Source:
        """A slot beyond those that are there, for what a reader is blocked on."""
        up = [one for one in self.all if one.down_until <= now] or self.all
        source = self.best(now) or min(up, key=lambda one: one.used)
        source.took(now)
        return source

    def best(self, now: float, but: Source | None = None) -> Source | None:
        """Where a request can expect most, if a slot is free anywhere (except at `but`)."""
        able = [one for one in self.all if one is not but and self._room(one, now) > 0]
        return max(able, key=self._worth, default=None)

    def _worth(self, source: Source) -> tuple[bool, float, int]:
        share = source.share(source.used + 1)
        if share == inf and source.used:  # one request finds out; the others count on an average
            known = [one.rate.value for one in self.all if one.rate is not None]
            share = sum(known) / max(1, len(known)) / (source.used + 1)
        return (source.ip == self._home, share, -source.used)

    def _room(self, source: Source, now: float) -> int:
        if len(self.all) > 1 and source.probed:
            return 1 - source.used if source.down_until <= now else 0
        return self._slots - source.used

    def release(self, source: Source, now: float) -> None:
        """The request has ended."""
        source.released(now)

    def failed(self, source: Source, now: float) -> None:
        """No connection, or no byte in time. All requests of one outage count as one failure."""
        if source.down_until > now:
            return
        wait_s = min(DOWN_CAP_S, DOWN_FIRST_S * 2.0 ** min(source.failures, 10))
        source.failures += 1
        source.down_until = now + wait_s
        source.forget()

    def measure(self, now: float) -> None:
        """Bring all rates up to date."""
        for source in self.all:
            source.measure(now)

    def next_deadline(self, now: float) -> float:
        """When an address that is down may be tried again."""
        waits = [one.down_until for one in self.all if one.probed and one.down_until > now]
        return min(waits, default=inf)


@dataclass(frozen=True, slots=True)
class Steal:
    """What an idle address takes of a range: so many bytes of its end, or all that is left."""

    tail_bytes: int
    whole: bool = False


def steal(
    left_bytes: int, block_left_bytes: int, block_bytes: int, slow: float, fast: float
) -> Steal | None:
    """Share a range that is under way with an idle address.

    Args:
      left_bytes: still to come; `block_left_bytes` of it belong to the block that is arriving.
      slow, fast: bytes a second that the range gets now, and would get over there.

    Returns:
      How much to take, so that both end together; None: it is not worth a cut connection.
    """
    if fast <= 0 or slow * STEAL_S >= left_bytes:
        return None
    tail = int(left_bytes * (fast / (fast + slow) if fast < inf else 0.5))
    tail = min(tail, left_bytes - block_left_bytes) // block_bytes * block_bytes
    if tail > 0:
        return Steal(tail)
    # one block is not divided: it moves, if it is over there twice as soon
    if slow * (STEAL_S + 2 * left_bytes / fast) < left_bytes:
        return Steal(left_bytes, whole=True)
    return None


def limits_for(connections: int, addresses: int) -> Limits:
    """How much a swarm asks for at once, here.

    Leases: enough to keep the connections to the origin busy with two requests each; few, so that a
    swarm's nodes do not spread the origin thin. Asks: two for each data connection of a peer.

    Args:
      connections: requests to the origin at once from each address, in all workers together.
      addresses: source addresses; 0: the kernel chooses.
    """
    count, one = max(1, addresses), Limits()
    return Limits(
        origin_fetches=min(max(connections * count // 2, 2), 8),
        asks_total=one.asks_total * count,
        asks_per_peer=one.asks_per_peer * count,
    )
