"""From which of our addresses to which of a peer's: the order of tries, and what failed. Pure.

With n addresses here and m there, a peer gets as many data connections as the larger number of the
two, each from or to an address that no other one uses, so that every NIC carries. Addresses that
share most of their leading bits come first: what is on one network reaches itself. While a NIC is
down others stand in for it; once it carries again they are spare.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from math import inf

from p2p.units import format_address, parse_address

Pair = tuple[str, str]
"""our address (empty: the kernel chooses) and HOST:PORT of the peer"""

DOWN_FIRST_S, DOWN_CAP_S = 1.0, 8.0
MAX_LINKS = 16  # data connections with one peer: as many addresses as a node may advertise


def common_bits(one: str, other: str) -> int | None:
    """Leading bits that two addresses share; 0 if one is a name; None: of different families."""
    try:
        ours, theirs = ip_address(one), ip_address(other)
    except ValueError:
        return 0
    if ours.version != theirs.version:
        return None
    return ours.max_prefixlen - (int(ours) ^ int(theirs)).bit_length()


def order(sources: tuple[str, ...], addresses: tuple[str, ...]) -> list[Pair]:
    """All pairs that could work, the best first."""
    ranked = []
    for i, source in enumerate(sources or ("",)):
        for j, address in enumerate(addresses):
            bits = common_bits(source, parse_address(address)[0])
            if bits is not None:
                ranked.append((-bits, (j - i) % len(addresses), i, (source, address)))
    return [pair for *_, pair in sorted(ranked)]


def spare(used: list[Pair]) -> set[int]:
    """Of connections of these pairs, the oldest first: which have addresses that others use too."""
    kept = dict(enumerate(used))
    for index, (source, address) in enumerate(used):
        others = [pair for other, pair in kept.items() if other != index]
        if source in {pair[0] for pair in others} and address in {pair[1] for pair in others}:
            del kept[index]
    return set(range(len(used))) - set(kept)


@dataclass(slots=True)
class Pairs:
    """The pairs of one peer.

    Args:
      all: in order, see `order`.
      last: tried when none of those works.
    """

    all: list[Pair]
    last: list[Pair] = field(default_factory=list)
    _failures: dict[Pair, int] = field(default_factory=dict)
    _down_until: dict[Pair, float] = field(default_factory=dict)

    @classmethod
    def between(
        cls, sources: tuple[str, ...], addresses: tuple[str, ...], seen_ip: str = ""
    ) -> "Pairs":
        """Those of our addresses and a peer's.

        Args:
          seen_ip: where the peer dials from. What it says of itself may be out of date: a container
            that is connected to its network again gets another address.
        """
        pairs = cls(order(sources, addresses))
        if seen_ip and addresses and seen_ip not in {parse_address(one)[0] for one in addresses}:
            seen = format_address(seen_ip, parse_address(addresses[0])[1])
            pairs.last = order(sources, (seen,))
        return pairs

    @property
    def each(self) -> list[Pair]:
        """All of them, the best first."""
        return [*self.all, *self.last]

    def pick(self, used: list[Pair], now: float) -> Pair | None:
        """The pair for one more data connection beside those in use; None: there are enough.

        Without any connection there is always one, the soonest usable, if the peer has an address.
        """
        if not used:
            return min(self.each, key=lambda pair: max(now, self._down(pair)), default=None)
        if len(used) >= MAX_LINKS:
            return None
        sources, addresses = {pair[0] for pair in used}, {pair[1] for pair in used}
        able = [pair for pair in self.all if self._down(pair) <= now]
        for needed in (2, 1):
            for source, address in able:
                if (source not in sources) + (address not in addresses) >= needed:
                    return source, address
        return None

    def tries(self, now: float) -> list[Pair]:
        """All pairs for a control session: those that failed lately come last."""
        return sorted(self.each, key=lambda pair: self._down(pair) > now)

    def usable(self, pair: Pair, now: float) -> bool:
        """It has not failed lately."""
        return self._down(pair) <= now

    def _down(self, pair: Pair) -> float:
        return self._down_until.get(pair, -inf)

    def failed(self, pair: Pair, now: float) -> None:
        """It could not be dialled, or what was asked on it never came."""
        if self._down(pair) <= now:
            count = self._failures[pair] = self._failures.get(pair, 0) + 1
            self._down_until[pair] = now + min(DOWN_CAP_S, DOWN_FIRST_S * 2.0 ** (count - 1))

    def worked(self, pair: Pair) -> None:
        """An answer came on it."""
        self._failures.pop(pair, None)
        self._down_until.pop(pair, None)
