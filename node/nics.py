"""Source addresses towards the origin: which one the next request leaves from. Pure.

Every address has slots of its own, and a request takes one where most are free: so a fast NIC,
whose slots come back sooner, carries more, and nobody measures or divides anything. An address from
which nothing gets out is left alone for a while, and then tried with one request at a time:

    UP --failed()--> DOWN --its time has come--> PROBED --worked()--> UP
                      ^                             |
                      '--------- failed() ----------'
"""

from dataclasses import dataclass
from math import inf

DOWN_FIRST_S, DOWN_CAP_S = 0.5, 8.0


@dataclass(slots=True)
class Source:
    """One local address; the empty one leaves the choice to the kernel."""

    ip: str
    used: int = 0
    bytes: int = 0
    failures: int = 0
    down_until: float = 0.0

    @property
    def probed(self) -> bool:
        """It has failed and not worked since."""
        return self.failures > 0


class Sources:
    """All addresses of one worker.

    Args:
      ips: local addresses; none: the kernel chooses.
      slots: requests at once from each.
    """

    def __init__(self, ips: tuple[str, ...], slots: int) -> None:
        self._slots = slots
        self.all = [Source(ip) for ip in ips or ("",)]

    def take(self, now: float) -> Source | None:
        """A slot, given back with `release`; None: none is free now."""
        able = [source for source in self.all if self._room(source, now) > 0]
        if not able:
            return None
        source = max(able, key=lambda one: self._room(one, now))
        source.used += 1
        return source

    def _room(self, source: Source, now: float) -> int:
        if len(self.all) > 1 and source.probed:
            return 1 - source.used if source.down_until <= now else 0
        return self._slots - source.used

    def release(self, source: Source) -> None:
        """The request has ended."""
        source.used -= 1

    def worked(self, source: Source, count: int) -> None:
        """Bytes came."""
        source.bytes += count
        source.failures = 0

    def failed(self, source: Source, now: float) -> None:
        """No connection, or no byte in time."""
        wait_s = min(DOWN_CAP_S, DOWN_FIRST_S * 2.0 ** min(source.failures, 10))
        source.failures += 1
        source.down_until = now + wait_s

    def next_deadline(self, now: float) -> float:
        """When an address that is down may be tried again."""
        waits = [one.down_until for one in self.all if one.probed and one.down_until > now]
        return min(waits, default=inf)
